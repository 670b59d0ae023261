/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns
 *
 * Unread UDP datagrams (senders that are gone, foreign and peers; sizes; what the receiver is told besides), closed
 * halves, multicast groups.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LARGE_BYTES 60000

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static int any4, v6, dual, connected, peer, group[2], closed_write, closed_both, members, members6;
static int group_index;
static char large[LARGE_BYTES];

static union address name4(const char *address, uint16_t port)
{
	union address name = {.v4 = {.sin_family = AF_INET, .sin_port = htons(port)}};

	MUST(inet_pton(AF_INET, address, &name.v4.sin_addr) - 1);
	return name;
}

static union address name6(const char *address, uint16_t port)
{
	union address name = {.v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)}};

	MUST(inet_pton(AF_INET6, address, &name.v6.sin6_addr) - 1);
	return name;
}

static socklen_t size_of(const union address *name)
{
	return name->any.sa_family == AF_INET6 ? sizeof(name->v6) : sizeof(name->v4);
}

static void set_int(int fd, int level, int option, int value)
{
	MUST(setsockopt(fd, level, option, &value, sizeof(value)));
}

static int new_socket(union address name, int level, int option)
{
	int fd = MUST(socket(name.any.sa_family, SOCK_DGRAM, 0));

	if (option)
		set_int(fd, level, option, 1);
	MUST(bind(fd, &name.any, size_of(&name)));
	return fd;
}

/* From a socket that exists for this one datagram only, with any address. */
static void send_from(union address from, union address to, const void *data, size_t size, int ttl, int tos)
{
	bool is6 = from.any.sa_family == AF_INET6;
	int fd = new_socket(from, is6 ? IPPROTO_IPV6 : IPPROTO_IP, is6 ? IPV6_TRANSPARENT : IP_TRANSPARENT);

	if (ttl)
		set_int(fd, is6 ? IPPROTO_IPV6 : IPPROTO_IP, is6 ? IPV6_UNICAST_HOPS : IP_TTL, ttl);
	if (tos)
		set_int(fd, is6 ? IPPROTO_IPV6 : IPPROTO_IP, is6 ? IPV6_TCLASS : IP_TOS, tos);
	MUST(sendto(fd, data, size, 0, &to.any, size_of(&to)) == (ssize_t)size ? 0 : -1);
	close(fd);
}

/* What came besides the data. */
struct told {
	int ttl, tos, interface;
	char destination[INET6_ADDRSTRLEN];
};

static void take_told(struct msghdr *message, struct told *told)
{
	*told = (struct told){.ttl = -1, .tos = -1, .interface = -1};
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
		const void *data = CMSG_DATA(part);
		if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_PKTINFO) {
			const struct in_pktinfo *info = data;
			told->interface = info->ipi_ifindex;
			inet_ntop(AF_INET, &info->ipi_addr, told->destination, sizeof(told->destination));
		} else if (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_PKTINFO) {
			const struct in6_pktinfo *info = data;
			told->interface = info->ipi6_ifindex;
			inet_ntop(AF_INET6, &info->ipi6_addr, told->destination, sizeof(told->destination));
		} else if (part->cmsg_type == IP_TTL || part->cmsg_type == IPV6_HOPLIMIT) {
			told->ttl = *(const int *)data;
		} else if (part->cmsg_type == IP_TOS || part->cmsg_type == IPV6_TCLASS) {
			told->tos = *(const unsigned char *)data;
		}
	}
}

static void expect(const char *what, int fd, union address from, const void *data, size_t size, struct told *told)
{
	static char buffer[LARGE_BYTES + 1];
	char control[512] __attribute__((aligned(8)));
	union address got = {};
	struct iovec part = {buffer, sizeof(buffer)};
	struct msghdr message = {.msg_name = &got,
				 .msg_namelen = sizeof(got),
				 .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	ssize_t length = recvmsg(fd, &message, MSG_DONTWAIT);

	CHECK(length == (ssize_t)size, "%s: %zd bytes instead of %zu: %s", what, length, size, strerror(errno));
	if (length != (ssize_t)size)
		return;
	CHECK(!memcmp(buffer, data, size), "%s: other bytes", what);
	CHECK(message.msg_namelen == size_of(&from) && !memcmp(&got, &from, size_of(&from)), "%s: another sender",
	      what);
	take_told(&message, told);
}

static void expect_nothing(const char *what, int fd)
{
	char byte;

	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN, "%s: there is more", what);
}

static void fill_all(void)
{
	union address to4 = name4("127.0.0.3", 7201), to6 = name6("::1", 7202), to_dual = name4("127.0.0.1", 7203);
	struct pollfd ready[2];

	send_from(name4("127.0.0.1", 7301), to4, "first", 5, 33, 0x48);
	send_from(name4("127.0.0.1", 7302), to4, "", 0, 0, 0);
	send_from(name4("192.0.2.7", 53), to4, large, sizeof(large), 0, 0);
	send_from(name4("127.0.0.1", 7301), to4, "last!", 5, 0, 0);
	send_from(name6("2001:db8::7", 53), to6, "foreign6", 8, 44, 0x20);
	send_from(name4("192.0.2.8", 54), to_dual, "mapped", 6, 0, 0);
	MUST(send(peer, "to connected", 12, 0));
	send_from(name4("127.0.0.1", 7304), name4("127.0.0.1", 7206), "shared", 6, 0, 0);
	for (int i = 0; i < 2; i++)
		ready[i] = (struct pollfd){.fd = group[i], .events = POLLIN};
	MUST(poll(ready, 2, 10000) == 1 ? 0 : -1);
	group_index = ready[1].revents ? 1 : 0;
}

static void check_any4(void)
{
	struct told told;

	expect("first", any4, name4("127.0.0.1", 7301), "first", 5, &told);
	CHECK(told.ttl == 33 && told.tos == 0x48, "ttl %d, tos %#x", told.ttl, told.tos);
	CHECK(!strcmp(told.destination, "127.0.0.3") && told.interface == (int)if_nametoindex("lo"), "to %s on %d",
	      told.destination, told.interface);
	expect("empty", any4, name4("127.0.0.1", 7302), "", 0, &told);
	expect("large", any4, name4("192.0.2.7", 53), large, sizeof(large), &told);
	CHECK(!strcmp(told.destination, "127.0.0.3"), "to %s", told.destination);
	expect("last", any4, name4("127.0.0.1", 7301), "last!", 5, &told);
	expect_nothing("any4", any4);
}

static void check_others(void)
{
	struct told told;

	expect("v6", v6, name6("2001:db8::7", 53), "foreign6", 8, &told);
	CHECK(told.ttl == 44 && told.tos == 0x20, "hop limit %d, class %#x", told.ttl, told.tos);
	CHECK(!strcmp(told.destination, "::1"), "to %s", told.destination);
	expect_nothing("v6", v6);
	expect("dual", dual, name6("::ffff:192.0.2.8", 54), "mapped", 6, &told);
	expect_nothing("dual", dual);
	expect("connected", connected, name4("127.0.0.1", 7205), "to connected", 12, &told);
	expect_nothing("connected", connected);
	expect("shared port", group[group_index], name4("127.0.0.1", 7304), "shared", 6, &told);
	expect_nothing("shared port", group[0]);
	expect_nothing("shared port", group[1]);
}

static bool may_send(int fd)
{
	union address to = name4("127.0.0.1", 9);
	ssize_t sent = sendto(fd, "x", 1, MSG_NOSIGNAL, &to.any, size_of(&to));

	CHECK(sent == 1 || errno == EPIPE, "%s", strerror(errno));
	return sent == 1;
}

static void check_closed(void)
{
	struct pollfd event = {.fd = closed_write, .events = POLLRDHUP};

	CHECK(!may_send(closed_write) && !may_send(closed_both) && may_send(any4));
	CHECK(poll(&event, 1, 0) == 0, "closed for reading: %#x", event.revents);
	event.fd = closed_both;
	CHECK(poll(&event, 1, 0) == 1 && event.revents & POLLRDHUP && event.revents & POLLHUP, "%#x", event.revents);
}

/* -1: not a member; else the number of sources, with 1000 more for MCAST_INCLUDE. */
static int membership(int fd, union address name)
{
	char buffer[GROUP_FILTER_SIZE(4)] __attribute__((aligned(8))) = {};
	struct group_filter *filter = (struct group_filter *)buffer;
	socklen_t size = sizeof(buffer);

	filter->gf_interface = if_nametoindex("lo");
	filter->gf_numsrc = 4;
	memcpy(&filter->gf_group, &name, size_of(&name));
	if (getsockopt(fd, name.any.sa_family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP, MCAST_MSFILTER, filter, &size))
		return -1;
	return filter->gf_numsrc + (filter->gf_fmode == MCAST_INCLUDE ? 1000 : 0);
}

static void check_members(void)
{
	struct in_addr from = {};
	socklen_t size = sizeof(from);
	union address to = name4("239.7.7.7", 7209);
	struct told told;
	int found = 0;

	CHECK((found = membership(members, name4("239.7.7.7", 0))) == 0, "%d", found);
	CHECK((found = membership(members, name4("239.7.7.8", 0))) == 1001, "%d", found);
	CHECK((found = membership(members, name4("239.7.7.9", 0))) == 1, "%d", found);
	CHECK((found = membership(members, name4("239.7.7.10", 0))) == -1, "%d", found);
	CHECK((found = membership(members6, name6("ff02::7777", 0))) == 0, "%d", found);
	CHECK((found = membership(any4, name4("239.7.7.7", 0))) == -1, "%d", found);
	CHECK(!getsockopt(members, IPPROTO_IP, IP_MULTICAST_IF, &from, &size) && from.s_addr == htonl(INADDR_LOOPBACK));
	CHECK(sendto(members, "many", 4, 0, &to.any, size_of(&to)) == 4, "%s", strerror(errno));
	expect("multicast", members, name4("127.0.0.1", 7209), "many", 4, &told);
	CHECK((found = 0, size = sizeof(found), getsockopt(members6, IPPROTO_IPV6, IPV6_MULTICAST_IF, &found, &size)) ==
			      0 &&
		      found == (int)if_nametoindex("lo"),
	      "%d", found);
}

static void join(int fd, int option, union address name, const char *source)
{
	struct group_source_req request = {.gsr_interface = if_nametoindex("lo")};
	struct group_req plain = {.gr_interface = request.gsr_interface};
	int level = name.any.sa_family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP;

	memcpy(&plain.gr_group, &name, size_of(&name));
	memcpy(&request.gsr_group, &name, size_of(&name));
	if (source)
		memcpy(&request.gsr_source, &(union address){.v4 = name4(source, 0).v4}, sizeof(struct sockaddr_in));
	if (option == MCAST_JOIN_GROUP)
		MUST(setsockopt(fd, level, option, &plain, sizeof(plain)));
	else
		MUST(setsockopt(fd, level, option, &request, sizeof(request)));
}

static void make_members(void)
{
	struct in_addr loopback = {htonl(INADDR_LOOPBACK)};

	members = new_socket(name4("0.0.0.0", 7209), 0, 0);
	join(members, MCAST_JOIN_GROUP, name4("239.7.7.7", 0), NULL);
	join(members, MCAST_JOIN_SOURCE_GROUP, name4("239.7.7.8", 0), "127.0.0.1");
	join(members, MCAST_JOIN_GROUP, name4("239.7.7.9", 0), NULL);
	join(members, MCAST_BLOCK_SOURCE, name4("239.7.7.9", 0), "192.0.2.66");
	MUST(setsockopt(members, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof(loopback)));
	members6 = new_socket(name6("::", 7210), 0, 0);
	join(members6, MCAST_JOIN_GROUP, name6("ff02::7777", 0), NULL);
	set_int(members6, IPPROTO_IPV6, IPV6_MULTICAST_IF, if_nametoindex("lo"));
}

static void make_all(void)
{
	union address to_peer = name4("127.0.0.1", 7205), to_connected = name4("127.0.0.1", 7204);

	for (size_t i = 0; i < sizeof(large); i++)
		large[i] = (char)(i * 7 + i / 251);
	any4 = new_socket(name4("0.0.0.0", 7201), IPPROTO_IP, IP_PKTINFO);
	set_int(any4, IPPROTO_IP, IP_RECVTTL, 1);
	set_int(any4, IPPROTO_IP, IP_RECVTOS, 1);
	v6 = new_socket(name6("::1", 7202), IPPROTO_IPV6, IPV6_RECVPKTINFO);
	set_int(v6, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	set_int(v6, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	dual = new_socket(name6("::", 7203), 0, 0);
	connected = new_socket(name4("127.0.0.1", 7204), 0, 0);
	peer = new_socket(name4("127.0.0.1", 7205), 0, 0);
	MUST(connect(connected, &to_peer.any, size_of(&to_peer)));
	MUST(connect(peer, &to_connected.any, size_of(&to_connected)));
	for (int i = 0; i < 2; i++)
		group[i] = new_socket(name4("0.0.0.0", 7206), SOL_SOCKET, SO_REUSEPORT);
	closed_write = new_socket(name4("127.0.0.1", 7207), 0, 0);
	closed_both = new_socket(name4("127.0.0.1", 7208), 0, 0);
	/* They say ENOTCONN, and do it. */
	shutdown(closed_write, SHUT_WR);
	shutdown(closed_both, SHUT_RDWR);
	make_members();
}

int main(void)
{
	make_all();
	fill_all();
	harness_ready();
	while (harness_wait_check()) {
		check_any4();
		check_others();
		check_closed();
		check_members();
		fill_all();
		harness_report();
	}
	return 0;
}
