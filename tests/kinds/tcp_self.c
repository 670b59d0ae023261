/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns
 *
 * TCP connections with both ends in the tree, in one process or two: unread bytes, bytes that do not fit into the
 * receiver's buffer, half-closed states, IPv4, IPv6 and IPv4 over IPv6, options. They must come back with every byte.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MANY 100
#define FLOOD_MAX (8 << 20)
/* The kernel sends while the program is stopped, in segments so small that it must know how far it was. */
#define PACED_BYTES (192 << 10)
#define PACED_RATE (1 << 20) /* bytes a second */
#define PACED_SEGMENT 100

struct pair {
	int client, server;
};

static struct pair idle, waiting, flooded, paced, half_closed, ended, over, v6, mapped, tuned, many[MANY], shared;
static size_t flood_bytes;

static int get_int(int fd, int level, int option)
{
	int value = -1;
	socklen_t size = sizeof(value);

	MUST(getsockopt(fd, level, option, &value, &size));
	return value;
}

static void set_int(int fd, int level, int option, int value)
{
	MUST(setsockopt(fd, level, option, &value, sizeof(value)));
}

static int tcp_state(int fd)
{
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);

	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size));
	return info.tcpi_state;
}

/* The listener goes away at once: its connections must come back without it. */
static struct pair make_pair_in_segments(int family, const char *address, int segment_bytes)
{
	struct sockaddr_in6 v6_name = {.sin6_family = AF_INET6};
	struct sockaddr_in v4_name = {.sin_family = AF_INET};
	struct sockaddr *name = family == AF_INET6 ? (struct sockaddr *)&v6_name : (struct sockaddr *)&v4_name;
	socklen_t size = family == AF_INET6 ? sizeof(v6_name) : sizeof(v4_name);
	int listener = MUST(socket(family, SOCK_STREAM, 0));
	struct pair pair;

	MUST(inet_pton(family, address, family == AF_INET6 ? (void *)&v6_name.sin6_addr : (void *)&v4_name.sin_addr));
	if (segment_bytes)
		set_int(listener, IPPROTO_TCP, TCP_MAXSEG, segment_bytes);
	MUST(bind(listener, name, size));
	MUST(listen(listener, 1));
	MUST(getsockname(listener, name, &size));
	pair.client = MUST(socket(family, SOCK_STREAM, 0));
	MUST(connect(pair.client, name, size));
	pair.server = MUST(accept(listener, NULL, NULL));
	close(listener);
	return pair;
}

static struct pair make_pair(int family, const char *address)
{
	return make_pair_in_segments(family, address, 0);
}

static void check_exchange(const char *what, struct pair pair)
{
	char byte = 0;

	CHECK(send(pair.client, "a", 1, MSG_NOSIGNAL) == 1, "%s: %s", what, strerror(errno));
	CHECK(recv(pair.server, &byte, 1, 0) == 1 && byte == 'a', "%s: %s", what, strerror(errno));
	CHECK(send(pair.server, "b", 1, MSG_NOSIGNAL) == 1, "%s: %s", what, strerror(errno));
	CHECK(recv(pair.client, &byte, 1, 0) == 1 && byte == 'b', "%s: %s", what, strerror(errno));
}

static void check_names(const char *what, struct pair pair)
{
	struct sockaddr_storage local = {0}, remote = {0};
	socklen_t local_size = sizeof(local), remote_size = sizeof(remote);

	CHECK(!getsockname(pair.client, (struct sockaddr *)&local, &local_size), "%s", what);
	CHECK(!getpeername(pair.server, (struct sockaddr *)&remote, &remote_size), "%s", what);
	CHECK(local_size == remote_size && !memcmp(&local, &remote, local_size), "%s: names", what);
}

/* Unread bytes are looked at, and left. */
static void check_waiting(void)
{
	char buffer[64] = "";

	CHECK(recv(waiting.server, buffer, sizeof(buffer), MSG_PEEK) == 16 && !memcmp(buffer, "bytes in flight!", 16),
	      "%.16s", buffer);
	CHECK(recv(waiting.client, buffer, sizeof(buffer), MSG_PEEK) == 5 && !memcmp(buffer, "reply", 5));
}

static unsigned char flood_byte(size_t position)
{
	return (unsigned char)(position * 31 + (position >> 9));
}

/* Writes until both buffers are full. */
static void flood(void)
{
	static unsigned char data[65536];
	struct pollfd room = {.fd = flooded.client, .events = POLLOUT};
	int flags = fcntl(flooded.client, F_GETFL);

	fcntl(flooded.client, F_SETFL, flags | O_NONBLOCK);
	flood_bytes = 0;
	while (flood_bytes < FLOOD_MAX) {
		for (size_t i = 0; i < sizeof(data); i++)
			data[i] = flood_byte(flood_bytes + i);
		ssize_t count = send(flooded.client, data, sizeof(data), 0);

		/* The receiver takes some more a moment later. */
		if (count < 0 && poll(&room, 1, 100) <= 0)
			break;
		if (count > 0)
			flood_bytes += (size_t)count;
	}
	fcntl(flooded.client, F_SETFL, flags);
}

/* Reads @count bytes of those that were sent. */
static void check_bytes(const char *what, int fd, size_t count)
{
	static unsigned char data[65536];
	size_t position = 0;

	while (position < count) {
		ssize_t got = recv(fd, data, count - position < sizeof(data) ? count - position : sizeof(data), 0);

		if (got <= 0)
			break;
		for (ssize_t i = 0; i < got; i++)
			if (data[i] != flood_byte(position + i)) {
				CHECK(false, "%s: byte %zu of %zu is wrong", what, position + i, count);
				return;
			}
		position += (size_t)got;
	}
	CHECK(position == count, "%s: %zu of %zu bytes: %s", what, position, count, strerror(errno));
}

static void check_flooded(void)
{
	check_bytes("flooded", flooded.server, flood_bytes);
	flood();
}

/* Bytes that are on the way, some of them all the time. */
static void send_paced(void)
{
	static unsigned char data[PACED_BYTES];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = flood_byte(i);
	set_int(paced.client, SOL_SOCKET, SO_MAX_PACING_RATE, PACED_RATE);
	CHECK(send(paced.client, data, sizeof(data), MSG_NOSIGNAL) == sizeof(data), "%s", strerror(errno));
}

static void check_paced(void)
{
	check_bytes("paced", paced.server, PACED_BYTES);
	send_paced();
}

/* The client said its last byte; the server has not. */
static void check_half_closed(void)
{
	struct pollfd event = {.fd = half_closed.server, .events = POLLRDHUP};
	char buffer[8];

	CHECK(recv(half_closed.server, buffer, sizeof(buffer), MSG_PEEK) == 4 && !memcmp(buffer, "last", 4));
	CHECK(poll(&event, 1, 0) == 1, "no POLLRDHUP");
	CHECK(tcp_state(half_closed.server) == 8, "server: state %d", tcp_state(half_closed.server));
	CHECK(tcp_state(half_closed.client) == 5, "client: state %d", tcp_state(half_closed.client));
	CHECK(send(half_closed.client, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	CHECK(send(half_closed.server, "y", 1, MSG_NOSIGNAL) == 1, "%s", strerror(errno));
	CHECK(recv(half_closed.client, buffer, 1, 0) == 1 && buffer[0] == 'y', "%s", strerror(errno));

	CHECK(recv(ended.server, buffer, 1, 0) == 0, "no end of file: %s", strerror(errno));
	CHECK(send(ended.server, "z", 1, MSG_NOSIGNAL) == 1);
	CHECK(recv(ended.client, buffer, 1, 0) == 1 && buffer[0] == 'z');
}

/* Both sides have said their last byte, but not all was read. */
static void check_over(void)
{
	struct pollfd event = {.fd = over.client, .events = POLLIN | POLLRDHUP};
	char buffer[8] = "";

	CHECK(tcp_state(over.client) == 7, "state %d", tcp_state(over.client));
	CHECK(recv(over.client, buffer, sizeof(buffer), MSG_PEEK) == 6 && !memcmp(buffer, "unread", 6), "%.6s", buffer);
	CHECK(poll(&event, 1, 0) == 1 && event.revents & POLLHUP, "events %#x", event.revents);
	CHECK(send(over.client, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	CHECK(recv(over.server, buffer, 1, 0) == 0, "%s", strerror(errno));
}

static void check_tuned(void)
{
	int fd = tuned.client;
	struct linger linger = {0};
	socklen_t size = sizeof(linger);
	char name[16] = "";

	CHECK(get_int(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
	CHECK(get_int(tuned.server, IPPROTO_TCP, TCP_NODELAY) == 0);
	CHECK(get_int(tuned.server, IPPROTO_TCP, TCP_CORK) == 1);
	CHECK(get_int(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
	CHECK(get_int(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 1234);
	CHECK(get_int(fd, IPPROTO_TCP, TCP_KEEPINTVL) == 56);
	CHECK(get_int(fd, IPPROTO_TCP, TCP_KEEPCNT) == 7);
	CHECK(get_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 98765);
	CHECK(get_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT) == 4321);
	CHECK(get_int(fd, IPPROTO_IP, IP_TOS) == 0x10);
	CHECK(get_int(fd, IPPROTO_IP, IP_TTL) == 33);
	CHECK(get_int(fd, SOL_SOCKET, SO_RCVBUF) == 2 * 123456);
	CHECK(get_int(fd, SOL_SOCKET, SO_OOBINLINE) == 1);
	MUST(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size));
	CHECK(linger.l_onoff == 1 && linger.l_linger == 11, "linger %d %d", linger.l_onoff, linger.l_linger);
	size = sizeof(name);
	MUST(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &size));
	CHECK(!strcmp(name, "reno"), "congestion control %s", name);
	CHECK(fcntl(fd, F_GETFL) == (O_RDWR | O_NONBLOCK), "flags %#x", fcntl(fd, F_GETFL));
}

static void tune(void)
{
	int fd = tuned.client;
	struct linger linger = {.l_onoff = 1, .l_linger = 11};

	set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_int(tuned.server, IPPROTO_TCP, TCP_CORK, 1);
	set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1234);
	set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, 56);
	set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 7);
	set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 98765);
	set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 4321);
	set_int(fd, IPPROTO_IP, IP_TOS, 0x10);
	set_int(fd, IPPROTO_IP, IP_TTL, 33);
	set_int(fd, SOL_SOCKET, SO_RCVBUF, 123456);
	set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1);
	MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	MUST(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
}

/* The server's end of `shared` is used in the child. */
static void check_child(void *argument)
{
	char byte = 0;

	CHECK(recv(shared.server, &byte, 1, 0) == 1 && byte == 'p', "child: %s", strerror(errno));
	CHECK(send(shared.server, "c", 1, MSG_NOSIGNAL) == 1, "child: %s", strerror(errno));
}

static void check_shared(void)
{
	char byte = 0;

	CHECK(send(shared.client, "p", 1, MSG_NOSIGNAL) == 1, "%s", strerror(errno));
	harness_check_children();
	CHECK(recv(shared.client, &byte, 1, 0) == 1 && byte == 'c', "%s", strerror(errno));
}

/* Until the kernel has moved what it will move. */
static void wait_state(int fd, int state)
{
	while (tcp_state(fd) != state)
		poll(NULL, 0, 1);
}

static void make_all(void)
{
	idle = make_pair(AF_INET, "127.0.0.1");
	waiting = make_pair(AF_INET, "127.0.0.1");
	flooded = make_pair(AF_INET, "127.0.0.1");
	paced = make_pair_in_segments(AF_INET, "127.0.0.1", PACED_SEGMENT);
	set_int(paced.client, SOL_SOCKET, SO_SNDBUF, 2 * PACED_BYTES);
	set_int(paced.server, SOL_SOCKET, SO_RCVBUF, 2 * PACED_BYTES);
	half_closed = make_pair(AF_INET, "127.0.0.1");
	ended = make_pair(AF_INET6, "::1");
	over = make_pair(AF_INET, "127.0.0.1");
	v6 = make_pair(AF_INET6, "::1");
	mapped = make_pair(AF_INET6, "::ffff:127.0.0.1");
	tuned = make_pair(AF_INET, "127.0.0.1");
	for (int i = 0; i < MANY; i++)
		many[i] = make_pair(AF_INET, "127.0.0.1");
	shared = make_pair(AF_INET, "127.0.0.1");
	MUST(send(waiting.client, "bytes in flight!", 16, 0));
	MUST(send(waiting.server, "reply", 5, 0));
	MUST(send(half_closed.client, "last", 4, 0));
	MUST(shutdown(half_closed.client, SHUT_WR));
	MUST(shutdown(ended.client, SHUT_WR));
	wait_state(half_closed.client, 5);
	wait_state(ended.client, 5);
	MUST(send(over.server, "unread", 6, 0));
	MUST(shutdown(over.server, SHUT_WR));
	wait_state(over.client, 8);
	MUST(shutdown(over.client, SHUT_WR));
	wait_state(over.client, 7);
	wait_state(over.server, 7);
	tune();
	flood();
	send_paced();
}

int main(void)
{
	make_all();
	harness_start_child(check_child, NULL);
	close(shared.server);
	harness_ready();
	while (harness_wait_check()) {
		check_exchange("idle", idle);
		check_waiting();
		check_flooded();
		check_paced();
		check_half_closed();
		check_over();
		check_exchange("v6", v6);
		check_exchange("mapped", mapped);
		check_names("v6", v6);
		check_names("mapped", mapped);
		check_tuned();
		for (int i = 0; i < MANY; i++)
			check_exchange("many", many[i]);
		check_shared();
		harness_report();
	}
	return 0;
}
