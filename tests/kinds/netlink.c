/* SPDX-License-Identifier: Apache-2.0 */
/* Netlink sockets: untouched, bound to a port, in groups, connected, with options; requests work afterwards. */
#include "harness.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

static struct sockaddr_nl name_of(int fd, bool of_peer)
{
	struct sockaddr_nl name = {};
	socklen_t length = sizeof(name);

	CHECK((of_peer ? getpeername : getsockname)(fd, (struct sockaddr *)&name, &length) == 0);
	return name;
}

static bool is_member(int fd, unsigned group)
{
	uint32_t words[16] = {};
	socklen_t length = sizeof(words);

	CHECK(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &length) == 0);
	return words[(group - 1) / 32] & 1u << (group - 1) % 32;
}

static int get_int(int fd, int level, int option)
{
	int value = -1;
	socklen_t length = sizeof(value);

	CHECK(getsockopt(fd, level, option, &value, &length) == 0);
	return value;
}

/* Asks for the loopback device and looks at who answers whom. */
static void check_request(int fd, uint32_t port)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
	} request = {{sizeof(request), RTM_GETLINK, NLM_F_REQUEST, 77, 0}, {.ifi_index = 1}};
	char answer[8192];

	CHECK(send(fd, &request, sizeof(request), 0) == sizeof(request), "errno %d", errno);
	ssize_t length = recv(fd, answer, sizeof(answer), 0);
	const struct nlmsghdr *header = (void *)answer;
	CHECK(length >= (ssize_t)sizeof(*header) && header->nlmsg_type == RTM_NEWLINK && header->nlmsg_seq == 77 &&
		      header->nlmsg_pid == port,
	      "type %d sequence %d port %u, not %u", header->nlmsg_type, header->nlmsg_seq, header->nlmsg_pid, port);
}

int main(void)
{
	struct sockaddr_nl name = {.nl_family = AF_NETLINK};
	int untouched = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	int bound = MUST(socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_ROUTE));
	int events = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT));
	int connected = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	int group = RTNLGRP_IPV6_IFADDR, high_group = RTNLGRP_STATS, on = 1, off = 0;

	/* The automatic port is the pid, if it is free. */
	MUST(bind(bound, (struct sockaddr *)&name, sizeof(name)));
	MUST(setsockopt(bound, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on)));
	MUST(setsockopt(bound, SOL_SOCKET, SO_RCVBUF, &(int){30000}, sizeof(int)));
	MUST(setsockopt(bound, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on)));
	uint32_t port = name_of(bound, false).nl_pid;
	name.nl_groups = 1;
	MUST(bind(events, (struct sockaddr *)&name, sizeof(name)));
	uint32_t events_port = name_of(events, false).nl_pid;
	name.nl_groups = 0;
	name.nl_pid = 1234567;
	MUST(connect(connected, (struct sockaddr *)&name, sizeof(name)));
	MUST(setsockopt(connected, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)));
	MUST(setsockopt(connected, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &high_group, sizeof(high_group)));
	MUST(setsockopt(connected, SOL_NETLINK, NETLINK_CAP_ACK, &off, sizeof(off)));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(name_of(untouched, false).nl_pid == 0);
		CHECK(name_of(bound, false).nl_pid == port, "port %u, not %u", name_of(bound, false).nl_pid, port);
		CHECK(get_int(bound, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM);
		CHECK(get_int(bound, SOL_SOCKET, SO_PROTOCOL) == NETLINK_ROUTE);
		CHECK(get_int(bound, SOL_NETLINK, NETLINK_EXT_ACK) == 1);
		CHECK(get_int(bound, SOL_NETLINK, NETLINK_CAP_ACK) == 0);
		CHECK(get_int(bound, SOL_SOCKET, SO_RCVBUF) == 60000);
		check_request(bound, port);
		CHECK(get_int(events, SOL_SOCKET, SO_PROTOCOL) == NETLINK_KOBJECT_UEVENT);
		CHECK(name_of(events, false).nl_pid == events_port && is_member(events, 1) && !is_member(events, 2));
		CHECK(name_of(connected, true).nl_pid == 1234567);
		CHECK(is_member(connected, group) && is_member(connected, high_group) &&
		      !is_member(connected, RTNLGRP_LINK));
		harness_report();
	}
	return 0;
}
