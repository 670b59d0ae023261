/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A keeper listens on a socket in the abstract name space, whose name says which root it stands for: pid, start time
 * and pid name space. Both sides look at the other's uid (SO_PEERCRED): a name can be taken by anybody, the descriptors
 * are for root and ourselves only.
 *
 * One connection is one request: TAKE is answered with the list, PUT brings a new one, END has the end of the
 * connection as its answer. A list is a head and records, each of which carries its descriptor (SCM_RIGHTS) in a
 * message of its own.
 */
#include "dump/keeper.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fail.h"
#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"

enum {
	RUN_ID_BYTES = 40,
	PATIENCE_SECONDS = 5, /* for a peer that does not answer */
};

enum request { REQUEST_TAKE = 0x6b656501, REQUEST_PUT, REQUEST_END };

struct list_head {
	uint32_t count;
	char run_id[RUN_ID_BYTES]; /* "" = the images are of no use */
};

struct list_record {
	int32_t pid;
	uint64_t start_time;
};

/* ---- messages ---- */

static int send_descriptor(int socket_fd, const struct list_record *record, int fd)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec part = {(void *)record, sizeof(*record)};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	ssize_t sent = sendmsg(socket_fd, &message, MSG_NOSIGNAL);
	return sent == sizeof(*record) ? 0 : sent < 0 ? -errno : -EPIPE;
}

static int receive_descriptor(int socket_fd, struct list_record *ret_record, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec part = {ret_record, sizeof(*ret_record)};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
	struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);

	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
	    header->cmsg_len != CMSG_LEN(sizeof(int)))
		return got < 0 ? -errno : -EPROTO;
	memcpy(ret_fd, CMSG_DATA(header), sizeof(int));
	if (got == sizeof(*ret_record))
		return 0;
	close(*ret_fd);
	return -EPROTO;
}

static int send_list(int socket_fd, const struct memory_tracker *tracker)
{
	const char *run_id = tracker_run_id(tracker);
	struct list_head head = {};
	size_t count;
	const struct tracked_mm *mms = tracker_list(tracker, &count);

	head.count = count;
	snprintf(head.run_id, sizeof(head.run_id), "%s", run_id ? run_id : "");
	ssize_t sent = send(socket_fd, &head, sizeof(head), MSG_NOSIGNAL);
	int error = sent == sizeof(head) ? 0 : sent < 0 ? -errno : -EPIPE;
	for (size_t i = 0; i < count && !error; i++)
		error = send_descriptor(socket_fd, &(struct list_record){mms[i].pid, mms[i].start_time}, mms[i].uffd);
	return error;
}

static int receive_list(int socket_fd, struct memory_tracker *tracker)
{
	struct list_head head;
	int error = read_full(socket_fd, &head, sizeof(head));

	for (uint32_t i = 0; !error && i < head.count; i++) {
		struct list_record record;
		int uffd;
		error = receive_descriptor(socket_fd, &record, &uffd);
		if (!error)
			tracker_add(tracker, &(struct tracked_mm){record.pid, record.start_time, uffd});
	}
	if (!error && memchr(head.run_id, '\0', sizeof(head.run_id)))
		tracker_set_run_id(tracker, head.run_id);
	return error;
}

static bool is_trusted(int socket_fd)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	struct timeval patience = {.tv_sec = PATIENCE_SECONDS};

	setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(socket_fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return !getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

/* ---- the keeper ---- */

struct keeper {
	int listen_fd;
	int root_pidfd;
	struct memory_tracker *tracker;
};

/* Returns false when the keeper is to end. */
static bool serve(struct keeper *keeper)
{
	_cleanup_fd_ int fd = accept4(keeper->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	struct memory_tracker *brought;
	uint32_t request = 0;

	if (fd < 0 || !is_trusted(fd) || read_full(fd, &request, sizeof(request)) < 0)
		return true;
	switch (request) {
	case REQUEST_TAKE:
		send_list(fd, keeper->tracker);
		tracker_forget_images(keeper->tracker);
		return true;
	case REQUEST_PUT:
		brought = tracker_new();
		if (receive_list(fd, brought) < 0) {
			tracker_free(brought);
			return true;
		}
		tracker_free(keeper->tracker);
		keeper->tracker = brought;
		request = 0;
		send(fd, &request, sizeof(request), MSG_NOSIGNAL);
		return true;
	default:
		return request != REQUEST_END;
	}
}

static bool is_kept(const struct keeper *keeper, int fd)
{
	size_t count;
	const struct tracked_mm *mms = tracker_list(keeper->tracker, &count);

	for (size_t i = 0; i < count; i++)
		if (mms[i].uffd == fd)
			return true;
	return fd == keeper->listen_fd || fd == keeper->root_pidfd;
}

/* Neither terminal, pipes nor directories of the caller's stay in use. */
static void leave_caller(const struct keeper *keeper)
{
	_cleanup_free_ int *numbers = NULL;
	size_t count = 0;
	int self = proc_open(getpid());
	int null = open("/dev/null", O_RDWR);

	if (self >= 0)
		proc_list_numbers(self, "fd", &numbers, &count);
	for (int standard = 0; standard <= 2 && null >= 0; standard++)
		if (!is_kept(keeper, standard))
			dup2(null, standard);
	for (size_t i = 0; i < count; i++)
		if (numbers[i] > 2 && !is_kept(keeper, numbers[i]))
			close(numbers[i]);
	setsid();
	if (chdir("/") < 0)
		_exit(1);
}

static void __attribute__((noreturn)) keep(struct keeper *keeper)
{
	struct pollfd events[] = {{.fd = keeper->listen_fd, .events = POLLIN},
				  {.fd = keeper->root_pidfd, .events = POLLIN}};
	sigset_t none;

	leave_caller(keeper);
	prctl(PR_SET_NAME, "criu-keeper");
	prctl(PR_SET_DUMPABLE, 0);
	for (int signal = 1; signal < SIGRTMIN; signal++)
		(void)!sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	while (poll(events, ARRAY_SIZE(events), -1) >= 0 || errno == EINTR)
		if (events[1].revents || (events[0].revents && !serve(keeper)))
			break;
	_exit(0);
}

/* A child of a child: nobody has to wait for it. */
static int start(struct keeper *keeper)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		pid_t grandchild = fork();
		if (grandchild == 0)
			keep(keeper);
		_exit(grandchild < 0);
	}
	if (child < 0)
		return -errno;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return status ? -EAGAIN : 0;
}

/* ---- its callers ---- */

int keeper_key(pid_t root, struct failure *failure, struct keeper_key *ret_key)
{
	struct keeper_key key = {.root = root, .address = {.sun_family = AF_UNIX}};
	_cleanup_fd_ int fd = proc_open(root);
	struct proc_stat stat;
	struct stat space;
	int error = fd < 0 ? fd : proc_read_stat(fd, "stat", &stat);

	if (!error && fstatat(AT_FDCWD, "/proc/self/ns/pid", &space, 0) < 0)
		error = -errno;
	if (error < 0)
		return fail_errno(failure, error, "pid-missing", NULL, "look it up with ps or pgrep",
				  "cannot look at process %d", root);
	int length = snprintf(key.address.sun_path + 1, sizeof(key.address.sun_path) - 1, "criu-keeper-%lu-%d-%lu",
			      (unsigned long)space.st_ino, root, stat.start_time);
	key.address_bytes = offsetof(struct sockaddr_un, sun_path) + 1 + length;
	*ret_key = key;
	return 0;
}

/* A connection to the keeper with the request sent. Returns the descriptor or -errno. */
static int ask(const struct keeper_key *key, uint32_t request)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)&key->address, key->address_bytes) < 0)
		return -errno;
	if (!is_trusted(fd))
		return -EPERM;
	if (send(fd, &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request))
		return -EPIPE;
	return TAKE_FD(fd);
}

bool keeper_take(const struct keeper_key *key, struct memory_tracker *tracker)
{
	_cleanup_fd_ int fd = ask(key, REQUEST_TAKE);

	if (fd == -EPERM)
		log_warn("the keeper of process %d belongs to somebody else; memory is dumped in full", key->root);
	if (fd < 0)
		return false;
	if (receive_list(fd, tracker) < 0)
		tracker_forget_images(tracker);
	return true;
}

static int start_keeper(const struct keeper_key *key, const struct memory_tracker *tracker)
{
	_cleanup_fd_ int listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	_cleanup_fd_ int root_pidfd = syscall(SYS_pidfd_open, key->root, 0);
	struct keeper keeper = {listen_fd, root_pidfd, (struct memory_tracker *)tracker};

	if (listen_fd < 0 || root_pidfd < 0 ||
	    bind(listen_fd, (const struct sockaddr *)&key->address, key->address_bytes) < 0 || listen(listen_fd, 4) < 0)
		return -errno;
	return start(&keeper);
}

int keeper_put(const struct keeper_key *key, const struct memory_tracker *tracker, struct failure *failure)
{
	_cleanup_fd_ int fd = ask(key, REQUEST_PUT);
	uint32_t answer;
	int error = fd == -ECONNREFUSED ? start_keeper(key, tracker) : fd < 0 ? fd : send_list(fd, tracker);

	if (!error && fd >= 0)
		error = read_full(fd, &answer, sizeof(answer));
	if (error < 0)
		return fail_errno(failure, error, "keeper", NULL, "the next dump will be a full one",
				  "cannot keep the tracking of process %d", key->root);
	return 0;
}

void keeper_end(const struct keeper_key *key)
{
	_cleanup_fd_ int fd = ask(key, REQUEST_END);
	char byte;

	if (fd >= 0)
		(void)!read(fd, &byte, sizeof(byte));
}
