/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream_server PORT [both]: accepts connections and sends back each byte that it gets, plus one (modulo 256).
 * "both": of IPv6 as well as of IPv4, each by a listener of its own.
 * Any number of connections, one thread. A connection that ends is closed and said on standard output, with the
 * reason. After the peer's end of file the rest is answered, then the connection is closed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64
#define BUFFER_BYTES (256 << 10)
#define LISTENERS 2

struct connection {
	int fd;
	size_t used; /* bytes of the buffer that wait to be sent */
	int ended;   /* the peer has said its last byte */
	unsigned char buffer[BUFFER_BYTES];
};

static struct connection *connections[CONNECTIONS_MAX];
static int count;

static void die(const char *what)
{
	fprintf(stderr, "stream_server: %s: %m\n", what);
	exit(1);
}

static void end_connection(int index, const char *why)
{
	printf("end %s\n", why);
	fflush(stdout);
	close(connections[index]->fd);
	free(connections[index]);
	connections[index] = connections[--count];
}

static void accept_one(int listener)
{
	struct connection *connection = calloc(1, sizeof(*connection));

	connection->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	if (connection->fd < 0)
		die("accept");
	connections[count++] = connection;
	printf("connected\n");
	fflush(stdout);
}

/* Returns why the connection ended, or NULL. */
static const char *take(struct connection *connection)
{
	ssize_t got = recv(connection->fd, connection->buffer + connection->used, BUFFER_BYTES - connection->used, 0);

	if (got < 0)
		return errno == EAGAIN ? NULL : strerror(errno);
	for (ssize_t i = 0; i < got; i++)
		connection->buffer[connection->used + (size_t)i]++;
	connection->used += (size_t)got;
	connection->ended = got == 0;
	return NULL;
}

static const char *give(struct connection *connection)
{
	ssize_t sent = send(connection->fd, connection->buffer, connection->used, MSG_NOSIGNAL);

	if (sent < 0)
		return errno == EAGAIN ? NULL : strerror(errno);
	memmove(connection->buffer, connection->buffer + sent, connection->used - (size_t)sent);
	connection->used -= (size_t)sent;
	return NULL;
}

static void serve(int index, short events)
{
	struct connection *connection = connections[index];
	const char *why = NULL;

	if (events & (POLLIN | POLLHUP | POLLERR) && !connection->ended && connection->used < BUFFER_BYTES)
		why = take(connection);
	if (!why && connection->used)
		why = give(connection);
	if (!why && connection->ended && !connection->used)
		why = "of file";
	if (why)
		end_connection(index, why);
}

static int listen_on(const struct sockaddr *address, socklen_t size)
{
	int fd = socket(address->sa_family, SOCK_STREAM, 0);
	int one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (address->sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (fd < 0 || bind(fd, address, size) || listen(fd, 64))
		die("listen");
	return fd;
}

static int listen_ipv4(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

	return listen_on((struct sockaddr *)&address, sizeof(address));
}

static int listen_ipv6(uint16_t port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

	return listen_on((struct sockaddr *)&address, sizeof(address));
}

static short wanted_events(const struct connection *connection)
{
	return (short)((!connection->ended && connection->used < BUFFER_BYTES ? POLLIN : 0) |
		       (connection->used ? POLLOUT : 0));
}

int main(int argc, char **argv)
{
	uint16_t port = (uint16_t)(argc > 1 ? atoi(argv[1]) : 7000);
	/* IPv6 first: who sees the other one listen knows that both do. */
	int listeners[LISTENERS] = {argc > 2 ? listen_ipv6(port) : -1, -1};

	listeners[1] = listen_ipv4(port);
	for (;;) {
		struct pollfd events[CONNECTIONS_MAX + LISTENERS];
		int served = count;

		for (int i = 0; i < served; i++)
			events[i] = (struct pollfd){.fd = connections[i]->fd, .events = wanted_events(connections[i])};
		for (int i = 0; i < LISTENERS; i++)
			events[served + i] = (struct pollfd){
				.fd = count + LISTENERS <= CONNECTIONS_MAX ? listeners[i] : -1, .events = POLLIN};
		if (poll(events, (nfds_t)served + LISTENERS, -1) < 0)
			die("poll");
		/* From the end: a connection that ends is replaced by the last, which was served already. */
		for (int i = served - 1; i >= 0; i--)
			if (events[i].revents)
				serve(i, events[i].revents);
		for (int i = 0; i < LISTENERS; i++)
			if (events[served + i].revents)
				accept_one(listeners[i]);
	}
}
