/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors are non-blocking: a call first tries, and only if nothing can be moved it waits in poll(2), together
 * with the descriptor that cancels. So the common case costs one system call, and no wait is deaf.
 *
 * What makes links hard: a peer that lost power says nothing. Keepalive notices that on an idle connection,
 * TCP_USER_TIMEOUT on one that has unacknowledged data; both make the socket fail with ETIMEDOUT.
 */
#include "migrate/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"

enum { LINGER_MS = 1000 };

/* ---- descriptors as carrier ---- */

static ssize_t fd_read(struct stream *stream, void *buffer, size_t size)
{
	ssize_t count;

	if (__atomic_load_n(&stream->stopped, __ATOMIC_ACQUIRE))
		return 0;
	do
		count = read(stream->read_fd, buffer, size);
	while (count < 0 && errno == EINTR);
	return count < 0 ? -errno : count;
}

static ssize_t fd_writev(struct stream *stream, const struct iovec *parts, int count)
{
	struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
	ssize_t done;

	if (__atomic_load_n(&stream->stopped, __ATOMIC_ACQUIRE))
		return -EPIPE;
	/* A lost peer must be an error, not a signal. Pipes cannot say so: their users ignore SIGPIPE. */
	do
		done = stream->is_socket ? sendmsg(stream->write_fd, &message, MSG_NOSIGNAL)
					 : writev(stream->write_fd, parts, count);
	while (done < 0 && errno == EINTR);
	return done < 0 ? -errno : done;
}

static void fd_free(struct stream *stream)
{
}

const struct stream_operations stream_fd_operations = {
	.name = "fd",
	.read = fd_read,
	.writev = fd_writev,
	.free = fd_free,
};

static int make_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return -errno;
	return 0;
}

static bool is_socket(int fd)
{
	int type;
	socklen_t size = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

int stream_from_fds(int read_fd, int write_fd, const char *peer, struct stream **ret_stream)
{
	struct stream *stream = xcalloc(1, sizeof(*stream));

	*stream = (struct stream){
		.operations = &stream_fd_operations,
		.read_fd = read_fd,
		.write_fd = write_fd,
		.cancel_fd = -1,
		.holder_fd = -1,
		.timeout_ms = -1,
		.is_socket = is_socket(write_fd),
		.stop_fd = -1,
	};
	if (!stream->is_socket)
		stream->stop_fd = eventfd(0, EFD_CLOEXEC);
	snprintf(stream->peer, sizeof(stream->peer), "%s", peer);
	int r = make_nonblocking(read_fd) ?: make_nonblocking(write_fd);
	if (r < 0) {
		stream_close(&stream);
		return r;
	}
	*ret_stream = stream;
	return 0;
}

int stream_pair(struct stream *ret_streams[2])
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	int r = stream_from_fds(fds[0], fds[0], "the other end", &ret_streams[0]);
	if (r < 0) {
		close(fds[1]);
		return r;
	}
	r = stream_from_fds(fds[1], fds[1], "the other end", &ret_streams[1]);
	if (r < 0)
		stream_close(&ret_streams[0]);
	return r;
}

/* ---- TCP ---- */

void stream_tune_socket(int fd)
{
	static const struct {
		int option, value;
	} options[] = {
		{TCP_NODELAY, 1},
		{TCP_KEEPIDLE, 3},
		{TCP_KEEPINTVL, 3},
		{TCP_KEEPCNT, 4},
		{TCP_USER_TIMEOUT, STREAM_LINK_TIMEOUT_MS},
	};
	int domain = 0, one = 1;
	socklen_t size = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 || (domain != AF_INET && domain != AF_INET6))
		return;
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		setsockopt(fd, IPPROTO_TCP, options[i].option, &options[i].value, sizeof(options[i].value));
	/* Sizes of buffers are left to the kernel's autotuning: a fixed size would switch it off. */
}

/* Connects a non-blocking socket. Returns 0 or -errno. */
static int connect_wait(int fd, const struct addrinfo *info, int timeout_ms)
{
	struct pollfd wait = {.fd = fd, .events = POLLOUT};
	int error = 0;
	socklen_t size = sizeof(error);

	if (connect(fd, info->ai_addr, info->ai_addrlen) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return -errno;
	int ready = poll(&wait, 1, timeout_ms);
	if (ready < 0)
		return -errno;
	if (!ready)
		return -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		return -errno;
	return -error;
}

static int connect_one(const struct addrinfo *info, int timeout_ms, int *ret_fd)
{
	_cleanup_fd_ int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	int r = connect_wait(fd, info, timeout_ms);
	if (r < 0)
		return r;
	stream_tune_socket(fd);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int stream_connect_tcp(const char *host, uint16_t port, int timeout_ms, struct failure *failure,
		       struct stream **ret_stream)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
	char service[8], peer[160];
	int fd = -1, r = -EADDRNOTAVAIL;

	snprintf(service, sizeof(service), "%u", port);
	snprintf(peer, sizeof(peer), "%.140s port %u", host, port);
	int error = getaddrinfo(host, service, &hints, &list);
	if (error)
		return fail(failure, EHOSTUNREACH, "link-name", peer, NULL, "the name cannot be looked up: %s",
			    gai_strerror(error));
	for (const struct addrinfo *info = list; info && r < 0; info = info->ai_next)
		r = connect_one(info, timeout_ms, &fd);
	freeaddrinfo(list);
	if (r < 0)
		return fail_errno(failure, r, "link-connect", peer,
				  "start `criu receive --listen` there, and let the port through firewalls",
				  "cannot be connected to");
	r = stream_from_fds(fd, fd, peer, ret_stream);
	if (r < 0)
		return fail_errno(failure, r, "link-connect", peer, NULL, "the connection cannot be set up");
	return 0;
}

/* ---- waiting ---- */

/* Returns 1 (ready), 0 (time over), -ECANCELED or -errno. */
static int wait_for(const struct stream *stream, int fd, short events, int timeout_ms)
{
	struct pollfd waits[3] = {
		{.fd = fd, .events = events},
		{.fd = stream->cancel_fd, .events = POLLIN},
		{.fd = stream->stop_fd, .events = POLLIN},
	};
	int ready;

	do
		ready = poll(waits, ARRAY_SIZE(waits), timeout_ms);
	while (ready < 0 && errno == EINTR);
	if (ready < 0)
		return -errno;
	if (waits[1].revents)
		return -ECANCELED;
	return ready ? 1 : 0;
}

static int wait_in_call(const struct stream *stream, int fd, short events)
{
	int ready = wait_for(stream, fd, events, stream->timeout_ms);

	return ready > 0 ? 0 : ready == 0 ? -ETIMEDOUT : ready;
}

int stream_wait_readable(struct stream *stream)
{
	return wait_in_call(stream, stream->read_fd, POLLIN);
}

int stream_wait_writable(struct stream *stream)
{
	uint64_t start_ns = clock_now_ns();
	int r = wait_in_call(stream, stream->write_fd, POLLOUT);

	stream->write_wait_ns += clock_now_ns() - start_ns;
	return r;
}

int stream_wait(struct stream *stream, int timeout_ms)
{
	if (stream_pending(stream))
		return 1;
	return wait_for(stream, stream->read_fd, POLLIN, timeout_ms);
}

/* ---- using ---- */

int stream_read_full(struct stream *stream, void *buffer, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = stream->operations->read(stream, (char *)buffer + done, size - done);

		if (count > 0) {
			done += (size_t)count;
			continue;
		}
		if (!count)
			return -ENODATA;
		if (count != -EAGAIN)
			return (int)count;
		int r = stream_wait_readable(stream);
		if (r < 0)
			return r;
	}
	return 0;
}

static void skip_parts(struct iovec **parts, int *count, size_t bytes)
{
	while (*count && bytes >= (*parts)->iov_len) {
		bytes -= (*parts)->iov_len;
		(*parts)++;
		(*count)--;
	}
	if (*count) {
		(*parts)->iov_base = (char *)(*parts)->iov_base + bytes;
		(*parts)->iov_len -= bytes;
	}
}

int stream_writev(struct stream *stream, struct iovec *parts, int count)
{
	skip_parts(&parts, &count, 0);
	while (count) {
		ssize_t done = stream->operations->writev(stream, parts, count);

		if (done >= 0) {
			__atomic_add_fetch(&stream->written_bytes, (uint64_t)done, __ATOMIC_RELAXED);
			skip_parts(&parts, &count, (size_t)done);
			continue;
		}
		if (done != -EAGAIN)
			return (int)done;
		int r = stream_wait_writable(stream);
		if (r < 0)
			return r;
	}
	return 0;
}

int stream_write_full(struct stream *stream, const void *buffer, size_t size)
{
	struct iovec part = {.iov_base = (void *)buffer, .iov_len = size};

	return stream_writev(stream, &part, 1);
}

uint64_t stream_delivered(const struct stream *stream)
{
	int queued = 0;

	if (stream->is_socket && ioctl(stream->write_fd, SIOCOUTQ, &queued) < 0)
		queued = 0;
	return __atomic_load_n(&stream->written_bytes, __ATOMIC_RELAXED) - (uint64_t)queued;
}

int stream_fd(const struct stream *stream)
{
	return stream->read_fd;
}

size_t stream_pending(struct stream *stream)
{
	return stream->operations->pending ? stream->operations->pending(stream) : 0;
}

void stream_set_timeout(struct stream *stream, int timeout_ms)
{
	stream->timeout_ms = timeout_ms;
}

void stream_set_cancel(struct stream *stream, int cancel_fd)
{
	stream->cancel_fd = cancel_fd;
}

void stream_shutdown(struct stream *stream)
{
	if (stream->is_socket) {
		shutdown(stream->write_fd, SHUT_RDWR);
		if (stream->read_fd != stream->write_fd)
			shutdown(stream->read_fd, SHUT_RDWR);
		return;
	}
	/* Pipes have no shutdown: whoever waits for one also waits for this. */
	const uint64_t one = 1;

	__atomic_store_n(&stream->stopped, true, __ATOMIC_RELEASE);
	write_full(stream->stop_fd, &one, sizeof(one));
}

void stream_linger(struct stream *stream)
{
	uint64_t end_ns = clock_now_ns() + (uint64_t)LINGER_MS * 1000000, now;
	char bytes[4096];

	if (!stream->is_socket || shutdown(stream->write_fd, SHUT_WR) < 0)
		return;
	while ((now = clock_now_ns()) < end_ns) {
		ssize_t count = stream_fd_operations.read(stream, bytes, sizeof(bytes));

		if (count == 0 || (count < 0 && count != -EAGAIN))
			return;
		if (count < 0 && wait_for(stream, stream->read_fd, POLLIN, (int)((end_ns - now) / 1000000)) <= 0)
			return;
	}
}

void stream_forget(struct stream **stream)
{
	struct stream *closed = *stream;

	if (!closed)
		return;
	*stream = NULL;
	if (closed->read_fd >= 0)
		close(closed->read_fd);
	if (closed->write_fd >= 0 && closed->write_fd != closed->read_fd)
		close(closed->write_fd);
	if (closed->stop_fd >= 0)
		close(closed->stop_fd);
	if (closed->holder_fd >= 0)
		close(closed->holder_fd);
	closed->operations->free(closed);
	free(closed);
}

void stream_close(struct stream **stream)
{
	if (*stream && (*stream)->operations->goodbye)
		(*stream)->operations->goodbye(*stream);
	stream_forget(stream);
}

const char *stream_peer(const struct stream *stream)
{
	return stream->peer;
}

bool stream_is_lost(const struct failure *failure)
{
	return !strncmp(failure->code, "link-", strlen("link-"));
}

int stream_fail(struct stream *stream, int error, struct failure *failure)
{
	const char *death = stream->operations->death ? stream->operations->death(stream) : NULL;

	error = error < 0 ? -error : error;
	if (error == ECANCELED)
		return fail(failure, ECANCELED, "cancelled", NULL, NULL, "cancelled");
	if (death)
		return fail(failure, error, "link-ended", stream->peer, NULL, "%s", death);
	if (error == ENODATA)
		return fail(failure, ECONNRESET, "link-ended", stream->peer, "the log of the other side says why",
			    "the other side ended the connection");
	if (error == ETIMEDOUT)
		return fail(failure, ETIMEDOUT, "link-timeout", stream->peer, NULL, "the other side does not answer");
	return fail_errno(failure, error, "link-lost", stream->peer, NULL, "the connection is lost");
}
