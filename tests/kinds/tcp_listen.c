/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns
 *
 * Listening, bound and dead TCP sockets: addresses, backlog, options, shared ports. A listener that never allowed its
 * port to be shared comes back beside a connection that it accepted. Every listener must accept again.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

struct listener {
	int family;
	const char *address;
	uint16_t port;
	int backlog;
	bool reuse_address, reuse_port, only_ipv6;
	int fd, protocol;
};

static struct listener listeners[] = {
	{AF_INET, "127.0.0.1", 7001, 16, true, false, false, -1},
	{AF_INET, "0.0.0.0", 7002, 1, false, false, false, -1},
	{AF_INET6, "::1", 7003, 7, false, false, true, -1},
	{AF_INET6, "::", 7004, 128, true, false, false, -1},
	{AF_INET, "127.0.0.1", 7005, 8, false, true, false, -1},
	{AF_INET, "127.0.0.1", 7005, 8, false, true, false, -1},
	{AF_INET6, "::", 7006, 32, true, false, false, -1, IPPROTO_MPTCP},
};
#define LISTENERS (sizeof(listeners) / sizeof(listeners[0]))

static int accepted, client, bound, dead;

static void set_int(int fd, int level, int option, int value)
{
	MUST(setsockopt(fd, level, option, &value, sizeof(value)));
}

static int get_int(int fd, int level, int option)
{
	int value = -1;
	socklen_t size = sizeof(value);

	MUST(getsockopt(fd, level, option, &value, &size));
	return value;
}

static socklen_t make_address(int family, const char *text, uint16_t port, struct sockaddr_storage *address)
{
	memset(address, 0, sizeof(*address));
	address->ss_family = family;
	if (family == AF_INET6) {
		struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

		v6->sin6_port = htons(port);
		inet_pton(AF_INET6, text, &v6->sin6_addr);
		return sizeof(*v6);
	}
	struct sockaddr_in *v4 = (struct sockaddr_in *)address;

	v4->sin_port = htons(port);
	inet_pton(AF_INET, text, &v4->sin_addr);
	return sizeof(*v4);
}

static void make_listener(struct listener *listener)
{
	struct sockaddr_storage address;
	socklen_t size = make_address(listener->family, listener->address, listener->port, &address);

	listener->fd = socket(listener->family, SOCK_STREAM | SOCK_NONBLOCK, listener->protocol);
	if (listener->fd < 0 && listener->protocol)
		return; /* a kernel without it, or switched off */
	MUST(listener->fd);
	if (listener->reuse_address)
		set_int(listener->fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (listener->reuse_port)
		set_int(listener->fd, SOL_SOCKET, SO_REUSEPORT, 1);
	if (listener->only_ipv6)
		set_int(listener->fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	MUST(bind(listener->fd, (struct sockaddr *)&address, size));
	MUST(listen(listener->fd, listener->backlog));
}

static int connect_to(int family, const char *text, uint16_t port)
{
	struct sockaddr_storage address;
	socklen_t size = make_address(family, text, port, &address);
	int fd = MUST(socket(family, SOCK_STREAM, 0));

	if (connect(fd, (struct sockaddr *)&address, size)) {
		CHECK(false, "connect to port %u: %s", port, strerror(errno));
		close(fd);
		return -1;
	}
	return fd;
}

static int accept_from(const struct listener *listener)
{
	struct pollfd event = {.fd = listener->fd, .events = POLLIN};

	/* One of two sockets that share a port gets the connection. */
	if (listener->reuse_port && poll(&event, 1, 0) != 1)
		return -1;
	poll(&event, 1, 10000);
	return accept(listener->fd, NULL, NULL);
}

static void check_listener(const struct listener *listener)
{
	struct sockaddr_storage wanted, found = {0};
	socklen_t size = make_address(listener->family, listener->address, listener->port, &wanted), found_size = size;
	struct tcp_info info = {0};
	socklen_t info_size = sizeof(info);

	MUST(getsockname(listener->fd, (struct sockaddr *)&found, &found_size));
	CHECK(!memcmp(&wanted, &found, size), "name of the listener on port %u", listener->port);
	CHECK(!listener->protocol || get_int(listener->fd, SOL_SOCKET, SO_PROTOCOL) == listener->protocol);
	CHECK(get_int(listener->fd, SOL_SOCKET, SO_ACCEPTCONN) == 1, "port %u does not listen", listener->port);
	CHECK(get_int(listener->fd, SOL_SOCKET, SO_REUSEADDR) == listener->reuse_address, "port %u", listener->port);
	CHECK(get_int(listener->fd, SOL_SOCKET, SO_REUSEPORT) == listener->reuse_port, "port %u", listener->port);
	if (listener->family == AF_INET6)
		CHECK(get_int(listener->fd, IPPROTO_IPV6, IPV6_V6ONLY) == listener->only_ipv6);
	MUST(getsockopt(listener->fd, IPPROTO_TCP, TCP_INFO, &info, &info_size));
	CHECK((int)info.tcpi_sacked == listener->backlog, "port %u: backlog %u", listener->port, info.tcpi_sacked);
}

static void check_accepts(struct listener *listener, const char *address)
{
	int from = connect_to(strchr(address, ':') ? AF_INET6 : AF_INET, address, listener->port);
	int to = accept_from(listener);
	char byte = 0;

	if (to < 0 && listener->reuse_port)
		to = accept_from(listener->fd == listeners[4].fd ? &listeners[5] : &listeners[4]);
	CHECK(to >= 0, "accept on port %u: %s", listener->port, strerror(errno));
	if (from >= 0 && to >= 0) {
		CHECK(send(from, "x", 1, MSG_NOSIGNAL) == 1);
		CHECK(recv(to, &byte, 1, 0) == 1 && byte == 'x');
	}
	close(from);
	close(to);
}

static void check_pair(void)
{
	char byte = 0;

	CHECK(send(client, "a", 1, MSG_NOSIGNAL) == 1, "%s", strerror(errno));
	CHECK(recv(accepted, &byte, 1, 0) == 1 && byte == 'a', "%s", strerror(errno));
	CHECK(send(accepted, "b", 1, MSG_NOSIGNAL) == 1, "%s", strerror(errno));
	CHECK(recv(client, &byte, 1, 0) == 1 && byte == 'b', "%s", strerror(errno));
	CHECK(get_int(client, SOL_SOCKET, SO_REUSEADDR) == 0);
	CHECK(get_int(accepted, SOL_SOCKET, SO_REUSEADDR) == 0);
}

/* A socket whose connection was reset: it has an end, and takes nothing. */
static void check_dead(void)
{
	struct pollfd event = {.fd = dead, .events = POLLIN | POLLOUT | POLLRDHUP};
	char byte;

	CHECK(poll(&event, 1, 0) == 1 && event.revents & POLLHUP && event.revents & POLLRDHUP, "events %#x",
	      event.revents);
	CHECK(recv(dead, &byte, 1, 0) == 0, "%s", strerror(errno));
	CHECK(send(dead, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%s", strerror(errno));
}

static void check_bound(void)
{
	struct sockaddr_in name = {0};
	socklen_t size = sizeof(name);

	MUST(getsockname(bound, (struct sockaddr *)&name, &size));
	CHECK(ntohs(name.sin_port) == 7010 && name.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
	CHECK(get_int(bound, SOL_SOCKET, SO_ACCEPTCONN) == 0);
	CHECK(get_int(bound, SOL_SOCKET, SO_REUSEADDR) == 0);
}

static void make_dead(void)
{
	struct linger at_once = {.l_onoff = 1, .l_linger = 0};
	struct pollfd event;
	char byte;
	int killer;

	dead = MUST(connect_to(AF_INET, "127.0.0.1", 7001));
	killer = MUST(accept_from(&listeners[0]));
	MUST(setsockopt(killer, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)));
	close(killer);
	event = (struct pollfd){.fd = dead, .events = POLLRDHUP};
	poll(&event, 1, 10000);
	recv(dead, &byte, 1, 0); /* takes ECONNRESET away */
}

int main(void)
{
	struct sockaddr_storage address;
	socklen_t size = make_address(AF_INET, "127.0.0.1", 7010, &address);

	for (size_t i = 0; i < LISTENERS; i++)
		make_listener(&listeners[i]);
	client = MUST(connect_to(AF_INET, "127.0.0.1", 7002));
	accepted = MUST(accept_from(&listeners[1]));
	bound = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(bind(bound, (struct sockaddr *)&address, size));
	make_dead();
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < LISTENERS; i++) {
			if (listeners[i].fd < 0)
				continue;
			check_listener(&listeners[i]);
			check_accepts(&listeners[i], listeners[i].family == AF_INET ? "127.0.0.1" : "::1");
		}
		check_accepts(&listeners[3], "127.0.0.1");
		check_pair();
		check_dead();
		check_bound();
		harness_report();
	}
	return 0;
}
