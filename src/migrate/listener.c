/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that listens does as little as it can: it reads the 32 bytes of the preamble of each connection, of many
 * at a time and each within a few seconds, and hands the connection on. What comes then, TLS and all, is the matter of
 * the process that serves the session, so that a peer can at worst harm its own session.
 */
#include "migrate/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "migrate/door.h"
#include "migrate/endpoint.h"
#include "migrate/session_link.h"
#include "migrate/stream.h"

enum {
	MAX_SOCKETS = 8,
	MAX_PENDING = 64,
	MAX_SESSIONS = 32,
	PREAMBLE_WAIT_MS = 5000,
	FIRST_PASSED_FD = 3, /* of systemd */
	BACKLOG = 64,
};

#define DEFAULT_LISTEN "127.0.0.1:7777"

/* A connection whose preamble is on its way. */
struct pending {
	int fd;
	int64_t end_ms;
	size_t received;
	uint8_t preamble[PREAMBLE_BYTES];
};

struct served {
	pid_t pid;
	int pidfd;
};

struct listener {
	const struct listener_options *options;
	struct tls_credentials *tls; /* NULL = plain */
	int sockets[MAX_SOCKETS];
	size_t socket_count;
	struct pending pending[MAX_PENDING];
	size_t pending_count;
	struct served served[MAX_SESSIONS];
	size_t served_count;
	bool done;  /* --once has had its session, */
	int status; /* which ended so */
};

/* ---- sockets ---- */

static void address_name(const struct sockaddr *address, socklen_t size, char *name, size_t name_size)
{
	char host[64], port[16];

	if (address->sa_family == AF_UNIX)
		snprintf(name, name_size, "a unix socket");
	else if (getnameinfo(address, size, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(name, name_size, "an unknown address");
	else
		snprintf(name, name_size, address->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* Takes a listening socket in, if that is safe. The caller's on failure. */
static int add_socket(struct listener *listener, int fd, struct failure *failure)
{
	const struct listener_options *options = listener->options;
	struct sockaddr_storage address = {};
	socklen_t size = sizeof(address);
	char name[120];

	if (getsockname(fd, (struct sockaddr *)&address, &size) < 0)
		return fail_errno(failure, errno, "listen", "descriptor from systemd", NULL, "is no socket");
	address_name((struct sockaddr *)&address, size, name, sizeof(name));
	if (!listener->tls && !options->wire->insecure && !is_loopback_address((struct sockaddr *)&address))
		return fail(failure, EPERM, "insecure", name,
			    "add --tls or --psk-file, or --insecure if the network is trusted",
			    "anybody who reaches this address could start processes here");
	if (listener->socket_count == MAX_SOCKETS)
		return fail(failure, E2BIG, "listen", name, NULL, "too many addresses");
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	listener->sockets[listener->socket_count++] = fd;
	log_info("listening on %s", name);
	if (options->listening)
		options->listening(options->context, name);
	return 0;
}

static int bind_one(struct listener *listener, const struct addrinfo *info, const char *name, struct failure *failure)
{
	_cleanup_fd_ int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int one = 1;

	if (fd < 0)
		return fail_errno(failure, errno, "listen", name, NULL, "no socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (info->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
		return fail_errno(failure, errno, "listen", name, "choose another with --listen HOST:PORT",
				  "cannot be listened on");
	int r = add_socket(listener, fd, failure);
	if (!r)
		TAKE_FD(fd);
	return r;
}

static int bind_sockets(struct listener *listener, struct failure *failure)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
	const char *text = listener->options->listen ?: DEFAULT_LISTEN;
	struct endpoint endpoint;
	char service[8];

	int r = endpoint_parse_listen(text, &endpoint, failure);
	if (r < 0)
		return r;
	snprintf(service, sizeof(service), "%u", endpoint.port);
	int error = getaddrinfo(endpoint.host[0] ? endpoint.host : NULL, service, &hints, &list);
	if (error)
		return fail(failure, EADDRNOTAVAIL, "listen", text, NULL, "cannot be looked up: %s",
			    gai_strerror(error));
	for (const struct addrinfo *info = list; info && !r; info = info->ai_next) {
		struct failure later = {};

		/* Not every machine has both kinds of addresses: one is enough. */
		r = bind_one(listener, info, text, listener->socket_count ? &later : failure);
		if (listener->socket_count)
			r = 0;
		/* A second socket would get another port. */
		if (!endpoint.port)
			break;
	}
	freeaddrinfo(list);
	return r;
}

/* Sockets that systemd has passed. Returns their number or a failure. */
static int take_passed_sockets(struct listener *listener, struct failure *failure)
{
	const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");

	if (!pid || !fds || strtol(pid, NULL, 10) != getpid())
		return 0;
	long count = strtol(fds, NULL, 10);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	for (long i = 0; i < count; i++) {
		int r = add_socket(listener, FIRST_PASSED_FD + (int)i, failure);

		if (r < 0)
			return r;
	}
	return (int)count;
}

/* ---- sessions ---- */

/* In the new process: nothing of the listener's may stay open. */
static void forget(struct listener *listener, int but_fd)
{
	for (size_t i = 0; i < listener->socket_count; i++)
		close(listener->sockets[i]);
	for (size_t i = 0; i < listener->pending_count; i++)
		if (listener->pending[i].fd != but_fd)
			close(listener->pending[i].fd);
	for (size_t i = 0; i < listener->served_count; i++)
		close(listener->served[i].pidfd);
}

static void __attribute__((noreturn)) serve(struct listener *listener, int fd, const uint8_t *id)
{
	const struct listener_options *options = listener->options;
	struct session_entry entry = {.tls = listener->tls};
	struct sockaddr_storage address = {};
	socklen_t size = sizeof(address);
	char name[120];

	forget(listener, fd);
	memcpy(entry.id, id, sizeof(entry.id));
	getpeername(fd, (struct sockaddr *)&address, &size);
	address_name((struct sockaddr *)&address, size, name, sizeof(name));
	if (stream_from_fds(fd, fd, name, &entry.stream) < 0)
		_exit(1);
	int status = options->serve(options->context, &entry);
	fflush(NULL);
	_exit(status);
}

static void start_session(struct listener *listener, int fd, const uint8_t *id)
{
	if (listener->served_count == MAX_SESSIONS || (listener->options->once && listener->served_count)) {
		log_warn("a session was refused: %zu are being served", listener->served_count);
		return;
	}
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0)
		serve(listener, fd, id);
	if (pid < 0) {
		log_error("no process for a session: %s", strerror(errno));
		return;
	}
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	listener->served[listener->served_count++] = (struct served){pid, pidfd};
}

static void reap(struct listener *listener, size_t index)
{
	struct served *served = &listener->served[index];
	int status;

	if (waitpid(served->pid, &status, WNOHANG) != served->pid)
		return;
	close(served->pidfd);
	*served = listener->served[--listener->served_count];
	if (!listener->options->once)
		return;
	listener->done = true;
	listener->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- connections ---- */

static void hand_on(struct listener *listener, struct pending *pending)
{
	uint8_t id[SESSION_ID_BYTES];
	enum preamble_kind kind;
	int holder;

	if (preamble_decode(pending->preamble, &kind, id) < 0) {
		log_warn("something connected that is no criu");
		return;
	}
	if (kind == PREAMBLE_CONTROL) {
		start_session(listener, pending->fd, id);
		return;
	}
	int r = door_pass(id, kind, pending->fd, pending->fd, &holder);
	if (r == -ECONNREFUSED && kind == PREAMBLE_RETURN)
		start_session(listener, pending->fd, id);
	else if (r < 0)
		log_warn("a connection came for a session that is not here: %s", strerror(-r));
	else
		close(holder);
}

static void close_pending(struct listener *listener, size_t index)
{
	close(listener->pending[index].fd);
	listener->pending[index] = listener->pending[--listener->pending_count];
}

/* Reads what is there of a preamble. Returns whether the connection is done with. */
static bool read_pending(struct listener *listener, struct pending *pending)
{
	ssize_t count = read(pending->fd, pending->preamble + pending->received, PREAMBLE_BYTES - pending->received);

	if (count < 0)
		return errno != EAGAIN && errno != EINTR;
	if (!count)
		return true;
	pending->received += (size_t)count;
	if (pending->received < PREAMBLE_BYTES)
		return false;
	hand_on(listener, pending);
	return true;
}

static void accept_connection(struct listener *listener, int socket_fd)
{
	int fd = accept4(socket_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	stream_tune_socket(fd);
	listener->pending[listener->pending_count++] =
		(struct pending){.fd = fd, .end_ms = clock_now_ms() + PREAMBLE_WAIT_MS};
}

/* ---- the loop ---- */

enum { MAX_WAITS = MAX_SOCKETS + MAX_PENDING + MAX_SESSIONS + 1 };

struct waits {
	struct pollfd items[MAX_WAITS];
	nfds_t count;
};

static void add_wait(struct waits *waits, int fd)
{
	waits->items[waits->count++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static int time_to_next_end(const struct listener *listener)
{
	int64_t now = clock_now_ms(), least = INT32_MAX;

	for (size_t i = 0; i < listener->pending_count; i++)
		if (listener->pending[i].end_ms - now < least)
			least = listener->pending[i].end_ms - now;
	return least == INT32_MAX ? -1 : least > 0 ? (int)least : 0;
}

/* From the last to the first: what is done with is replaced by the last one, which was looked at. */
static void look_at_all(struct listener *listener, const struct waits *waits)
{
	const struct pollfd *served = waits->items + 1, *pending = served + listener->served_count;
	const struct pollfd *sockets = pending + listener->pending_count;
	size_t accepting = waits->count - (size_t)(sockets - waits->items);
	int64_t now = clock_now_ms();

	for (size_t i = listener->pending_count; i-- > 0;) {
		struct pending *one = &listener->pending[i];

		if ((pending[i].revents && read_pending(listener, one)) || now >= one->end_ms)
			close_pending(listener, i);
	}
	for (size_t i = (size_t)(pending - served); i-- > 0;)
		if (served[i].revents)
			reap(listener, i);
	for (size_t i = 0; i < accepting; i++)
		if (sockets[i].revents && listener->pending_count < MAX_PENDING)
			accept_connection(listener, listener->sockets[i]);
}

static int run(struct listener *listener, struct failure *failure)
{
	while (!listener->done) {
		struct waits waits = {};

		add_wait(&waits, listener->options->stop_fd);
		for (size_t i = 0; i < listener->served_count; i++)
			add_wait(&waits, listener->served[i].pidfd);
		for (size_t i = 0; i < listener->pending_count; i++)
			add_wait(&waits, listener->pending[i].fd);
		for (size_t i = 0; i < listener->socket_count && listener->pending_count < MAX_PENDING; i++)
			add_wait(&waits, listener->sockets[i]);
		if (poll(waits.items, waits.count, time_to_next_end(listener)) < 0 && errno != EINTR)
			return fail_errno(failure, errno, "listen", "listener", NULL, "cannot wait");
		if (waits.items[0].revents)
			return 0;
		look_at_all(listener, &waits);
	}
	return 0;
}

/* ---- standard input and output ---- */

/* The stream gets other numbers; what is printed goes to standard error, which ssh carries apart. */
static int take_standard_fds(struct failure *failure, int ret_fds[2])
{
	_cleanup_fd_ int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	_cleanup_fd_ int read_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, FIRST_PASSED_FD);
	_cleanup_fd_ int write_fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, FIRST_PASSED_FD);

	if (null_fd < 0 || read_fd < 0 || write_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 ||
	    dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		return fail_errno(failure, errno, "stdio", "standard input and output", NULL, "cannot be used");
	ret_fds[0] = TAKE_FD(read_fd);
	ret_fds[1] = TAKE_FD(write_fd);
	return 0;
}

static int serve_stdio(const struct listener_options *options, struct failure *failure, int *ret_status)
{
	struct session_entry entry = {};
	uint8_t preamble[PREAMBLE_BYTES];
	enum preamble_kind kind;
	int fds[2];

	int r = take_standard_fds(failure, fds);
	if (r < 0)
		return r;
	r = stream_from_fds(fds[0], fds[1], "ssh", &entry.stream);
	if (r < 0)
		return fail_errno(failure, r, "stdio", "standard input and output", NULL, "cannot be used");
	stream_set_timeout(entry.stream, SESSION_SETUP_TIMEOUT_MS);
	r = stream_read_full(entry.stream, preamble, sizeof(preamble));
	if (r < 0)
		r = stream_fail(entry.stream, r, failure);
	else if (preamble_decode(preamble, &kind, entry.id) < 0 ||
		 kind != (options->returns ? PREAMBLE_RETURN : PREAMBLE_CONTROL))
		r = fail(failure, EPROTO, "session-preamble", "standard input", "--stdio is for `criu migrate ssh://…`",
			 "no migration comes from there");
	if (r < 0) {
		stream_close(&entry.stream);
		return r;
	}
	*ret_status = options->serve(options->context, &entry);
	return 0;
}

int listener_join(const char *id_text, struct failure *failure)
{
	uint8_t id[SESSION_ID_BYTES];
	char byte;
	int holder;

	if (session_id_parse(id_text, id) < 0)
		return fail(failure, EINVAL, "usage", "--join", NULL, "\"%.40s\" is no id of a session", id_text);
	int r = door_pass(id, PREAMBLE_UNREAD, STDIN_FILENO, STDOUT_FILENO, &holder);
	if (r < 0)
		return fail_errno(failure, r, "session-unknown", "--join", NULL, "no such session is here");
	/* The session has them now: its end of the stream must be the only one. */
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	while (read(holder, &byte, 1) < 0 && errno == EINTR)
		continue;
	close(holder);
	return 0;
}

int listener_run(const struct listener_options *options, struct failure *failure, int *ret_status)
{
	struct listener *listener;

	*ret_status = 0;
	if (options->stdio)
		return serve_stdio(options, failure, ret_status);
	listener = xcalloc(1, sizeof(*listener));
	listener->options = options;
	int r = options->secure ? tls_credentials_load(&options->wire->tls, failure, &listener->tls) : 0;
	if (!r)
		r = take_passed_sockets(listener, failure);
	if (!r)
		r = bind_sockets(listener, failure);
	if (r >= 0)
		r = run(listener, failure);
	*ret_status = listener->status;
	forget(listener, -1);
	tls_credentials_free(&listener->tls);
	free(listener);
	return r;
}
