/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns
 *
 * UDP sockets: bound, connected, IPv4 and IPv6, shared ports, shut down for reading, options.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int plain, any, connected, peer, v6, dual, shared[2], unbound, deaf;

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

static struct sockaddr_in name4(uint32_t address, uint16_t port)
{
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(address)}};
}

static struct sockaddr_in6 name6(struct in6_addr address, uint16_t port)
{
	return (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = address};
}

static int bound4(uint32_t address, uint16_t port, bool share)
{
	struct sockaddr_in name = name4(address, port);
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));

	if (share)
		set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	MUST(bind(fd, (struct sockaddr *)&name, sizeof(name)));
	return fd;
}

static int bound6(struct in6_addr address, uint16_t port, bool only)
{
	struct sockaddr_in6 name = name6(address, port);
	int fd = MUST(socket(AF_INET6, SOCK_DGRAM, 0));

	set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, only);
	MUST(bind(fd, (struct sockaddr *)&name, sizeof(name)));
	return fd;
}

static bool arrives(int fd, char wanted)
{
	struct pollfd event = {.fd = fd, .events = POLLIN};
	char byte = 0;

	return poll(&event, 1, 10000) == 1 && recv(fd, &byte, 1, MSG_DONTWAIT) == 1 && byte == wanted;
}

static void check_reaches4(const char *what, int fd, uint16_t port)
{
	struct sockaddr_in name = name4(INADDR_LOOPBACK, port);

	CHECK(sendto(unbound, "u", 1, 0, (struct sockaddr *)&name, sizeof(name)) == 1, "%s: %s", what, strerror(errno));
	CHECK(arrives(fd, 'u'), "%s: nothing arrives", what);
}

static void check_connected(void)
{
	struct sockaddr_in name = {0};
	socklen_t size = sizeof(name);

	CHECK(!getpeername(connected, (struct sockaddr *)&name, &size) && ntohs(name.sin_port) == 7104);
	CHECK(!getsockname(connected, (struct sockaddr *)&name, &size) && ntohs(name.sin_port) == 7103);
	CHECK(send(connected, "c", 1, 0) == 1, "%s", strerror(errno));
	CHECK(arrives(peer, 'c'));
	CHECK(send(peer, "p", 1, 0) == 1, "%s", strerror(errno));
	CHECK(arrives(connected, 'p'));
}

static void check_v6(void)
{
	struct sockaddr_in6 name = name6(in6addr_loopback, 7105);
	int fd = MUST(socket(AF_INET6, SOCK_DGRAM, 0));

	CHECK(sendto(fd, "6", 1, 0, (struct sockaddr *)&name, sizeof(name)) == 1, "%s", strerror(errno));
	CHECK(arrives(v6, '6'));
	CHECK(get_int(v6, IPPROTO_IPV6, IPV6_V6ONLY) == 1);
	CHECK(get_int(dual, IPPROTO_IPV6, IPV6_V6ONLY) == 0);
	close(fd);
	check_reaches4("dual", dual, 7106);
}

static void check_shared(void)
{
	struct sockaddr_in name = name4(INADDR_LOOPBACK, 7107);
	struct pollfd events[2] = {{.fd = shared[0], .events = POLLIN}, {.fd = shared[1], .events = POLLIN}};
	char byte;

	CHECK(sendto(unbound, "s", 1, 0, (struct sockaddr *)&name, sizeof(name)) == 1, "%s", strerror(errno));
	CHECK(poll(events, 2, 10000) == 1);
	CHECK(recv(shared[0], &byte, 1, MSG_DONTWAIT) == 1 || recv(shared[1], &byte, 1, MSG_DONTWAIT) == 1);
	CHECK(get_int(shared[0], SOL_SOCKET, SO_REUSEPORT) == 1 && get_int(shared[1], SOL_SOCKET, SO_REUSEPORT) == 1);
}

static void check_options(void)
{
	struct pollfd event = {.fd = deaf, .events = POLLRDHUP};

	CHECK(get_int(any, SOL_SOCKET, SO_BROADCAST) == 1);
	CHECK(get_int(any, IPPROTO_IP, IP_TTL) == 17);
	CHECK(get_int(any, IPPROTO_IP, IP_TOS) == 0x20);
	CHECK(get_int(any, IPPROTO_IP, IP_PKTINFO) == 1);
	CHECK(get_int(any, IPPROTO_IP, IP_RECVTTL) == 1);
	CHECK(get_int(any, IPPROTO_IP, IP_RECVERR) == 1);
	CHECK(get_int(any, IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_DO);
	CHECK(get_int(any, IPPROTO_IP, IP_MULTICAST_TTL) == 5);
	CHECK(get_int(any, IPPROTO_IP, IP_MULTICAST_LOOP) == 0);
	CHECK(get_int(v6, IPPROTO_IPV6, IPV6_UNICAST_HOPS) == 44);
	CHECK(get_int(v6, IPPROTO_IPV6, IPV6_RECVPKTINFO) == 1);
	CHECK(get_int(v6, IPPROTO_IPV6, IPV6_TCLASS) == 0x30);
	CHECK(poll(&event, 1, 0) == 1 && event.revents & POLLRDHUP, "events %#x", event.revents);
}

static void make_all(void)
{
	struct sockaddr_in to_peer = name4(INADDR_LOOPBACK, 7104), to_connected = name4(INADDR_LOOPBACK, 7103);

	plain = bound4(INADDR_LOOPBACK, 7101, false);
	any = bound4(INADDR_ANY, 7102, false);
	connected = bound4(INADDR_LOOPBACK, 7103, false);
	peer = bound4(INADDR_LOOPBACK, 7104, false);
	MUST(connect(connected, (struct sockaddr *)&to_peer, sizeof(to_peer)));
	MUST(connect(peer, (struct sockaddr *)&to_connected, sizeof(to_connected)));
	v6 = bound6(in6addr_loopback, 7105, true);
	dual = bound6(in6addr_any, 7106, false);
	shared[0] = bound4(INADDR_LOOPBACK, 7107, true);
	shared[1] = bound4(INADDR_LOOPBACK, 7107, true);
	unbound = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	deaf = bound4(INADDR_LOOPBACK, 7108, false);
	MUST(connect(deaf, (struct sockaddr *)&to_peer, sizeof(to_peer)));
	MUST(shutdown(deaf, SHUT_RD));
	set_int(any, SOL_SOCKET, SO_BROADCAST, 1);
	set_int(any, IPPROTO_IP, IP_TTL, 17);
	set_int(any, IPPROTO_IP, IP_TOS, 0x20);
	set_int(any, IPPROTO_IP, IP_PKTINFO, 1);
	set_int(any, IPPROTO_IP, IP_RECVTTL, 1);
	set_int(any, IPPROTO_IP, IP_RECVERR, 1);
	set_int(any, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
	set_int(any, IPPROTO_IP, IP_MULTICAST_TTL, 5);
	set_int(any, IPPROTO_IP, IP_MULTICAST_LOOP, 0);
	set_int(v6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44);
	set_int(v6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	set_int(v6, IPPROTO_IPV6, IPV6_TCLASS, 0x30);
}

int main(void)
{
	make_all();
	harness_ready();
	while (harness_wait_check()) {
		check_reaches4("plain", plain, 7101);
		check_reaches4("any", any, 7102);
		check_connected();
		check_v6();
		check_shared();
		check_options();
		harness_report();
	}
	return 0;
}
