/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard must be hard to kill by accident: it is no child of the daemon, in a session of its own, and holds no
 * terminal. It ends when it holds nothing and nobody is connected, and forgets spaces whose tasks have ended.
 */
#include "migrate/lazy_guard.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/log.h"
#include "model/lazy_memory.h"

enum {
	GUARD_ADD = 1,
	GUARD_DROP = 2,
	GUARD_DONE = 3, /* the answer, and the end of what a new daemon gets */
	PAGE_BYTES = 4096,
	LOOK_INTERVAL_MS = 2000,
};

struct guard_packet {
	uint32_t type, number;
};

/* ---- packets and sockets ---- */

static int send_packet(int fd, const struct guard_packet *packet, const int *fds, size_t count)
{
	struct iovec part = {(void *)packet, sizeof(*packet)};
	char control[CMSG_SPACE(2 * sizeof(int))] = {};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (count) {
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(head), fds, count * sizeof(int));
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

ssize_t lazy_receive(int fd, void *packet, size_t size, int *ret_fds, size_t count)
{
	char control[CMSG_SPACE(8 * sizeof(int))];
	struct iovec part = {packet, size};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	ssize_t got;
	size_t taken = 0;

	do
		got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	for (size_t i = 0; i < count; i++)
		ret_fds[i] = -1;
	for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		size_t fds = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < fds; i++) {
			int one;
			memcpy(&one, CMSG_DATA(head) + i * sizeof(int), sizeof(int));
			if (taken < count)
				ret_fds[taken++] = one;
			else
				close(one);
		}
	}
	return got;
}

static void socket_name(int dirfd, const char *name, struct sockaddr_un *ret_name)
{
	*ret_name = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(ret_name->sun_path, sizeof(ret_name->sun_path), "/proc/self/fd/%d/%s", dirfd, name);
}

int lazy_listen(int dirfd, const char *name)
{
	struct sockaddr_un address;
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	socket_name(dirfd, name, &address);
	unlinkat(dirfd, name, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    fchmodat(dirfd, name, 0600, 0) < 0 || listen(fd, 1) < 0)
		return -errno;
	return TAKE_FD(fd);
}

int lazy_accept(int listen_fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	_cleanup_fd_ int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	if (peer.uid && peer.uid != geteuid())
		return -EPERM;
	return TAKE_FD(fd);
}

/* Asked to fill a page that nobody can have mapped, the kernel first looks whether there is an address space. */
bool lazy_space_has_ended(int userfault_fd)
{
	struct uffdio_zeropage nowhere = {.range = {PAGE_BYTES, PAGE_BYTES}};

	return ioctl(userfault_fd, UFFDIO_ZEROPAGE, &nowhere) < 0 && errno == ESRCH;
}

/* ---- the guard ---- */

struct guard {
	struct lazy_held *held;
	size_t count, capacity;
	int listen_fd, daemon_fd; /* -1 = no daemon */
};

static void forget(struct guard *guard, size_t index)
{
	close(guard->held[index].userfault_fd);
	close(guard->held[index].state_fd);
	guard->held[index] = guard->held[--guard->count];
}

static void guard_serve(struct guard *guard)
{
	const struct guard_packet done = {.type = GUARD_DONE};
	struct guard_packet packet = {};
	int fds[2];
	ssize_t got = lazy_receive(guard->daemon_fd, &packet, sizeof(packet), fds, 2);

	if (got <= 0) {
		close(guard->daemon_fd);
		guard->daemon_fd = -1;
		return;
	}
	if (packet.type == GUARD_ADD && fds[0] >= 0 && fds[1] >= 0) {
		ARRAY_GROW(guard->held, guard->count, guard->capacity);
		guard->held[guard->count++] = (struct lazy_held){packet.number, fds[0], fds[1]};
		send_packet(guard->daemon_fd, &done, NULL, 0);
		return;
	}
	for (size_t i = guard->count; packet.type == GUARD_DROP && i-- > 0;)
		if (guard->held[i].number == packet.number)
			forget(guard, i);
}

/* A new daemon takes everything over: what it adds from then on must not meet numbers of the old one. */
static void guard_welcome(struct guard *guard)
{
	const struct guard_packet done = {.type = GUARD_DONE};
	int fd = lazy_accept(guard->listen_fd);
	int error = 0;

	if (fd < 0)
		return;
	if (guard->daemon_fd >= 0) {
		close(fd); /* one at a time */
		return;
	}
	for (size_t i = 0; i < guard->count && !error; i++) {
		const struct guard_packet packet = {GUARD_ADD, guard->held[i].number};
		error = send_packet(fd, &packet, (const int[]){guard->held[i].userfault_fd, guard->held[i].state_fd},
				    2);
	}
	if (!error)
		error = send_packet(fd, &done, NULL, 0);
	if (error)
		close(fd);
	else
		guard->daemon_fd = fd;
}

/* A userfaultfd that came with the fork and that nobody knows of would keep its task waiting for ever. */
static void close_all_but(int first, int second)
{
	int low = first < second ? first : second, high = first < second ? second : first;

	if (low > STDERR_FILENO + 1)
		close_range(STDERR_FILENO + 1, low - 1, 0);
	if (high > low + 1)
		close_range(low + 1, high - 1, 0);
	close_range(high + 1, ~0U, 0);
}

static void __attribute__((noreturn)) guard_main(int work_dirfd, int daemon_fd)
{
	close_all_but(work_dirfd, daemon_fd);
	struct guard guard = {.daemon_fd = daemon_fd, .listen_fd = lazy_listen(work_dirfd, LAZY_GUARD_NAME)};
	_cleanup_fd_ int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);

	setsid();
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_NAME, "criu-lazy-guard");
	for (int fd = 0; nowhere >= 0 && fd <= STDERR_FILENO; fd++)
		dup2(nowhere, fd);
	if (guard.listen_fd < 0)
		_exit(1);
	while (guard.daemon_fd >= 0 || guard.count) {
		struct pollfd wait[] = {{guard.listen_fd, POLLIN, 0}, {guard.daemon_fd, POLLIN, 0}};
		int ready = poll(wait, ARRAY_SIZE(wait), guard.daemon_fd < 0 ? LOOK_INTERVAL_MS : -1);
		if (ready > 0 && wait[1].revents)
			guard_serve(&guard);
		else if (ready > 0)
			guard_welcome(&guard);
		for (size_t i = guard.count; !ready && i-- > 0;)
			if (lazy_space_has_ended(guard.held[i].userfault_fd))
				forget(&guard, i);
	}
	unlinkat(work_dirfd, LAZY_GUARD_NAME, 0);
	_exit(0);
}

/* ---- the daemon's side ---- */

int lazy_guard_start(int work_dirfd, struct failure *failure, int *ret_fd)
{
	int pair[2], status;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return fail_errno(failure, errno, "lazy-guard", NULL, NULL, "socketpair");
	pid_t pid = fork();
	if (pid == 0) {
		close(pair[0]);
		if (fork() == 0)
			guard_main(work_dirfd, pair[1]);
		_exit(0);
	}
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		return fail_errno(failure, errno, "lazy-guard", NULL, NULL, "cannot fork");
	}
	waitpid(pid, &status, 0);
	*ret_fd = pair[0];
	return 0;
}

static int take_all(int fd, struct failure *failure, void (*take)(void *context, const struct lazy_held *held),
		    void *context)
{
	for (;;) {
		struct guard_packet packet = {};
		int fds[2];
		ssize_t got = lazy_receive(fd, &packet, sizeof(packet), fds, 2);
		if (got <= 0)
			return fail(failure, EBUSY, "lazy-guard", LAZY_GUARD_NAME,
				    "is another `criu lazy-pages` running?",
				    "the guard of this directory serves another daemon");
		if (packet.type == GUARD_DONE)
			return 0;
		if (fds[0] >= 0 && fds[1] >= 0)
			take(context, &(struct lazy_held){packet.number, fds[0], fds[1]});
	}
}

int lazy_guard_attach(int work_dirfd, struct failure *failure,
		      void (*take)(void *context, const struct lazy_held *held), void *context, int *ret_fd)
{
	struct sockaddr_un address;
	struct ucred peer;
	socklen_t size = sizeof(peer);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	socket_name(work_dirfd, LAZY_GUARD_NAME, &address);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return lazy_guard_start(work_dirfd, failure, ret_fd);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || (peer.uid && peer.uid != geteuid()))
		return fail(failure, EPERM, "lazy-guard", LAZY_GUARD_NAME, "choose another --work-dir",
			    "it is the socket of another user");
	int error = take_all(fd, failure, take, context);
	if (!error)
		*ret_fd = TAKE_FD(fd);
	return error;
}

int lazy_guard_add(int guard_fd, const struct lazy_held *held)
{
	const struct guard_packet packet = {GUARD_ADD, held->number};
	struct guard_packet answer = {};
	int error = send_packet(guard_fd, &packet, (const int[]){held->userfault_fd, held->state_fd}, 2);

	if (error)
		return error;
	ssize_t got = lazy_receive(guard_fd, &answer, sizeof(answer), NULL, 0);
	return got < 0 ? (int)got : got == sizeof(answer) && answer.type == GUARD_DONE ? 0 : -ENODATA;
}

int lazy_guard_drop(int guard_fd, uint32_t number)
{
	const struct guard_packet packet = {GUARD_DROP, number};

	return send_packet(guard_fd, &packet, NULL, 0);
}
