/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_link.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/log.h"
#include "migrate/stream.h"
#include "migrate/tls.h"

enum { CONNECT_WAIT_MS = 10000, BACKLOG = 4 };

static int secure(const struct page_link_options *options, bool server, struct failure *failure, struct stream **stream)
{
	return options->credentials
		       ? tls_start(stream, options->credentials, server, server ? NULL : options->address, failure)
		       : 0;
}

static int take_socket(const struct page_link_options *options, struct failure *failure, struct stream **ret_stream)
{
	struct sockaddr_storage name;
	socklen_t size = sizeof(name);
	char object[32];
	/* Refuses what is no socket, or one that nobody has connected. */
	int fd = getpeername(options->socket_fd, (struct sockaddr *)&name, &size) < 0
			 ? -1
			 : fcntl(options->socket_fd, F_DUPFD_CLOEXEC, 3);
	int error = fd < 0 ? -errno : stream_from_fds(fd, fd, "the other end of --ps-socket", ret_stream);

	snprintf(object, sizeof(object), "--ps-socket %d", options->socket_fd);
	return error ? fail_errno(failure, error, "page-socket", object, "give the number of a connected socket",
				  "cannot be used")
		     : 0;
}

int page_link_connect(const struct page_link_options *options, struct failure *failure, struct stream **ret_stream)
{
	_cleanup_stream_ struct stream *stream = NULL;
	int error;

	if (options->socket_fd >= 0)
		error = take_socket(options, failure, &stream);
	else if (!options->port)
		error = fail(failure, EINVAL, "usage", "--port", "give the port of the page server", "is missing");
	else
		error = stream_connect_tcp(options->address ?: "127.0.0.1", options->port, CONNECT_WAIT_MS, failure,
					   &stream);
	if (!error)
		error = secure(options, false, failure, &stream);
	if (!error)
		*ret_stream = TAKE_POINTER(stream);
	return error;
}

static bool is_loopback(const struct sockaddr *address)
{
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)address;
	const struct sockaddr_in *four = (const struct sockaddr_in *)address;

	return address->sa_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&six->sin6_addr)
					      : ntohl(four->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

static int listen_at(const struct addrinfo *info, uint16_t *ret_port)
{
	struct sockaddr_storage name = {};
	socklen_t size = sizeof(name);
	int one = 1, off = 0;
	_cleanup_fd_ int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (info->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ||
	    getsockname(fd, (struct sockaddr *)&name, &size) < 0)
		return -errno;
	*ret_port = ntohs(((struct sockaddr_in *)&name)->sin_port); /* at the same place in both families */
	return TAKE_FD(fd);
}

int page_link_listen(const struct page_link_options *options, struct failure *failure, int *ret_fd, uint16_t *ret_port)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	struct addrinfo *list = NULL;
	char port[8], object[300];
	int fd = -EADDRNOTAVAIL;

	*ret_fd = -1;
	if (options->socket_fd >= 0)
		return 0;
	snprintf(port, sizeof(port), "%u", options->port);
	snprintf(object, sizeof(object), "%s port %s", options->address ?: "any address", port);
	int error = getaddrinfo(options->address, port, &hints, &list);
	if (error)
		return fail(failure, EADDRNOTAVAIL, "page-listen", object, NULL, "cannot look it up: %s",
			    gai_strerror(error));
	for (const struct addrinfo *info = list; info && fd < 0; info = info->ai_next) {
		fd = listen_at(info, ret_port);
		if (fd >= 0 && !options->credentials && !is_loopback(info->ai_addr))
			log_warn("%s: whoever reaches it can read or send memory; use --tls, or --address 127.0.0.1",
				 object);
	}
	freeaddrinfo(list);
	if (fd < 0)
		return fail_errno(failure, fd, "page-listen", object,
				  fd == -EADDRINUSE ? "choose another --port" : NULL, "cannot listen");
	*ret_fd = fd;
	return 0;
}

static int accept_stream(int listen_fd, struct failure *failure, struct stream **ret_stream)
{
	struct sockaddr_storage name = {};
	socklen_t size = sizeof(name);
	char host[64] = "?", port[16] = "", peer[96];
	int fd;

	do
		fd = accept4(listen_fd, (struct sockaddr *)&name, &size, SOCK_CLOEXEC);
	while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0)
		return fail_errno(failure, errno, "page-accept", NULL, NULL, "cannot take a connection");
	getnameinfo((struct sockaddr *)&name, size, host, sizeof(host), port, sizeof(port),
		    NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(peer, sizeof(peer), "%s:%s", host, port);
	stream_tune_socket(fd);
	int error = stream_from_fds(fd, fd, peer, ret_stream);
	return error ? fail_errno(failure, error, "page-accept", peer, NULL, "cannot use the connection") : 0;
}

int page_link_accept(const struct page_link_options *options, int listen_fd, struct failure *failure,
		     struct stream **ret_stream)
{
	_cleanup_stream_ struct stream *stream = NULL;
	int error = options->socket_fd >= 0 ? take_socket(options, failure, &stream)
					    : accept_stream(listen_fd, failure, &stream);

	if (!error)
		error = secure(options, true, failure, &stream);
	if (!error)
		*ret_stream = TAKE_POINTER(stream);
	return error;
}
