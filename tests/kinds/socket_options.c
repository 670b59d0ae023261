/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netns
 * criu: --tcp-established
 *
 * Every option that the kernel lets a program set and read, of sockets of many sorts: each is set to something else
 * than it was if it can be, and all that can be read is the same after the restore. Nothing here knows which options
 * there are: one that a newer kernel has is tested too.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/in6.h>
#include <linux/net_tstamp.h>
#include <linux/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { NAMES = 128, BYTES = 64, PORT = 7300 };

/* Each changes by itself, is not about the socket alone, or is not the socket's to keep. */
static const struct {
	int level, name;
} left_out[] = {
	{SOL_SOCKET, SO_ERROR},
	{SOL_SOCKET, SO_PEERCRED},
	{SOL_SOCKET, SO_PEERSEC},
	{SOL_SOCKET, SO_PEERGROUPS},
	{SOL_SOCKET, 77 /* SO_PEERPIDFD */},
	{SOL_SOCKET, SO_PEERNAME},
	{SOL_SOCKET, SO_MEMINFO},
	{SOL_SOCKET, SO_COOKIE},
	{SOL_SOCKET, SO_NETNS_COOKIE},
	{SOL_SOCKET, SO_INCOMING_CPU},
	{SOL_SOCKET, SO_INCOMING_NAPI_ID},
	{SOL_SOCKET, SO_ATTACH_FILTER},
	{SOL_SOCKET, SO_DETACH_FILTER},
	{SOL_SOCKET, SO_ATTACH_BPF},
	{SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF},
	{SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF},
	{SOL_SOCKET, SO_DETACH_REUSEPORT_BPF},
	{SOL_SOCKET, SO_CNX_ADVICE},
	{IPPROTO_IP, 14 /* IP_MTU */},
	{IPPROTO_IP, 9 /* IP_PKTOPTIONS */},
	{IPPROTO_IP, 32 /* IP_MULTICAST_IF */},
	{IPPROTO_IPV6, IPV6_ADDRFORM},
	{IPPROTO_IPV6, IPV6_2292PKTOPTIONS},
	{IPPROTO_IPV6, IPV6_MULTICAST_IF},
	{IPPROTO_IPV6, IPV6_MTU},
	{IPPROTO_IPV6, IPV6_PATHMTU},
	{IPPROTO_IPV6, IPV6_FLOWLABEL_MGR},
	{IPPROTO_TCP, TCP_INFO},
	{IPPROTO_TCP, TCP_CC_INFO},
	{IPPROTO_TCP, TCP_QUICKACK},
	{IPPROTO_TCP, TCP_TIMESTAMP},
	{IPPROTO_TCP, TCP_REPAIR},
	{IPPROTO_TCP, TCP_REPAIR_QUEUE},
	{IPPROTO_TCP, TCP_REPAIR_OPTIONS},
	{IPPROTO_TCP, TCP_REPAIR_WINDOW},
	{IPPROTO_TCP, TCP_QUEUE_SEQ},
	{IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE},
	{IPPROTO_TCP, TCP_SAVED_SYN},
	{IPPROTO_TCP, TCP_ULP},
};

enum state { FRESH, BOUND, LISTENING, CONNECTED };

struct option {
	int error;
	socklen_t bytes;
	uint8_t data[BYTES];
};

static const int levels[] = {SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK};
enum { LEVELS = sizeof(levels) / sizeof(levels[0]) };

static struct subject {
	const char *name;
	int family, type;
	enum state state;
	int fd, peer_fd;
	struct option options[LEVELS][NAMES];
} subjects[] = {
	{"tcp4 fresh", AF_INET, SOCK_STREAM, FRESH},          {"tcp4 bound", AF_INET, SOCK_STREAM, BOUND},
	{"tcp4 listening", AF_INET, SOCK_STREAM, LISTENING},  {"tcp4 connected", AF_INET, SOCK_STREAM, CONNECTED},
	{"tcp6 fresh", AF_INET6, SOCK_STREAM, FRESH},         {"tcp6 listening", AF_INET6, SOCK_STREAM, LISTENING},
	{"tcp6 connected", AF_INET6, SOCK_STREAM, CONNECTED}, {"udp4 fresh", AF_INET, SOCK_DGRAM, FRESH},
	{"udp4 bound", AF_INET, SOCK_DGRAM, BOUND},           {"udp6 fresh", AF_INET6, SOCK_DGRAM, FRESH},
	{"udp6 bound", AF_INET6, SOCK_DGRAM, BOUND},          {"unix stream", AF_UNIX, SOCK_STREAM, CONNECTED},
	{"unix dgram", AF_UNIX, SOCK_DGRAM, CONNECTED},       {"unix seqpacket", AF_UNIX, SOCK_SEQPACKET, CONNECTED},
	{"unix fresh", AF_UNIX, SOCK_STREAM, FRESH},          {"netlink", AF_NETLINK, SOCK_RAW, BOUND},
};
enum { SUBJECTS = sizeof(subjects) / sizeof(subjects[0]) };

static bool is_left_out(const struct subject *subject, int level, int name)
{
	for (size_t i = 0; i < sizeof(left_out) / sizeof(left_out[0]); i++)
		if (left_out[i].level == level && left_out[i].name == name)
			return true;
	/* What a connection has come to. */
	if (subject->state == CONNECTED && level == IPPROTO_TCP && (name == TCP_MAXSEG || name == TCP_WINDOW_CLAMP))
		return true;
	/* A socket that is bound to an address of IPv6 has it for good; one that connect(2) has bound has not. */
	return subject->state == CONNECTED && level == IPPROTO_IPV6 && name == IPV6_V6ONLY;
}

static struct option read_option(int fd, int level, int name)
{
	struct option option = {.bytes = sizeof(option.data)};

	option.error = getsockopt(fd, level, name, option.data, &option.bytes) < 0 ? errno : 0;
	if (option.error)
		option.bytes = 0;
	return option;
}

static bool is_same(const struct option *left, const struct option *right)
{
	return left->error == right->error && left->bytes == right->bytes &&
	       !memcmp(left->data, right->data, left->bytes);
}

static void change(const struct subject *subject, int level, int name)
{
	static const int values[] = {1, 2, 3, 7, 0, 64, 1200, 100000};
	const struct option before = read_option(subject->fd, level, name);

	for (size_t i = 0; !before.error && i < sizeof(values) / sizeof(values[0]); i++) {
		if (setsockopt(subject->fd, level, name, &values[i], sizeof(values[i])) < 0)
			continue;
		const struct option after = read_option(subject->fd, level, name);
		if (!is_same(&before, &after))
			return;
	}
}

/* Those that are no int. */
static void change_others(const struct subject *subject)
{
	const struct linger linger = {1, 17};
	const struct timeval timeout = {3, 500000};
	const struct sock_txtime txtime = {CLOCK_TAI, SOF_TXTIME_REPORT_ERRORS};
	const uint64_t rate = 5000000000;
	const uint8_t record_route[] = {7, 7, 4, 0, 0, 0, 0, 0}, hop_options[] = {0, 0, 1, 4, 0, 0, 0, 0};
	const uint8_t fastopen_key[16] = "the key of 16 b";
	const uint32_t ports = 40000U << 16 | 30000;
	int fd = subject->fd;

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	if (subject->family == AF_UNIX || subject->family == AF_NETLINK)
		return;
	MUST(setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate)));
	MUST(setsockopt(fd, SOL_SOCKET, SO_TXTIME, &txtime, sizeof(txtime)));
	MUST(setsockopt(fd, IPPROTO_IP, 51 /* IP_LOCAL_PORT_RANGE */, &ports, sizeof(ports)));
	if (subject->family == AF_INET)
		MUST(setsockopt(fd, IPPROTO_IP, 4 /* IP_OPTIONS */, record_route, sizeof(record_route)));
	else
		MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_HOPOPTS, hop_options, sizeof(hop_options)));
	if (subject->type == SOCK_STREAM && subject->state != CONNECTED)
		MUST(setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_KEY, fastopen_key, sizeof(fastopen_key)));
}

static socklen_t loopback(int family, uint16_t port, struct sockaddr_storage *ret_name)
{
	*ret_name = (struct sockaddr_storage){.ss_family = family};
	if (family == AF_INET) {
		struct sockaddr_in *name = (struct sockaddr_in *)ret_name;
		name->sin_port = htons(port);
		name->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof(*name);
	}
	if (family == AF_INET6) {
		struct sockaddr_in6 *name = (struct sockaddr_in6 *)ret_name;
		name->sin6_port = htons(port);
		name->sin6_addr = in6addr_loopback;
		return sizeof(*name);
	}
	return sizeof(sa_family_t) + 10; /* netlink: the kernel gives it a port */
}

static void make(struct subject *subject, uint16_t port)
{
	struct sockaddr_storage name;
	socklen_t bytes = loopback(subject->family, port, &name);
	int pair[2];

	if (subject->family == AF_UNIX && subject->state == CONNECTED) {
		MUST(socketpair(AF_UNIX, subject->type, 0, pair));
		subject->fd = pair[0];
		subject->peer_fd = pair[1];
		return;
	}
	subject->fd = MUST(socket(subject->family, subject->type, 0));
	if (subject->state == FRESH)
		return;
	if (subject->state != CONNECTED) {
		MUST(bind(subject->fd, (struct sockaddr *)&name, bytes));
		if (subject->state == LISTENING)
			MUST(listen(subject->fd, 5));
		return;
	}
	int listener = MUST(socket(subject->family, subject->type, 0));
	MUST(bind(listener, (struct sockaddr *)&name, bytes));
	MUST(listen(listener, 5));
	MUST(connect(subject->fd, (struct sockaddr *)&name, bytes));
	subject->peer_fd = MUST(accept(listener, NULL, NULL));
	close(listener);
}

static void look(const struct subject *subject, struct option (*ret_options)[NAMES])
{
	for (size_t i = 0; i < LEVELS; i++)
		for (int name = 0; name < NAMES; name++)
			if (!is_left_out(subject, levels[i], name))
				ret_options[i][name] = read_option(subject->fd, levels[i], name);
}

static void hex(const struct option *option, char *text)
{
	if (option->error)
		strcpy(text, strerror(option->error));
	for (size_t i = 0; i < option->bytes && i < 16; i++)
		sprintf(text + 2 * i, "%02x", option->data[i]);
}

static void compare(const struct subject *subject)
{
	static struct option now[LEVELS][NAMES];

	look(subject, now);
	for (size_t i = 0; i < LEVELS; i++)
		for (int name = 0; name < NAMES; name++) {
			char was[64] = "", is[64] = "";
			if (is_left_out(subject, levels[i], name))
				continue;
			hex(&subject->options[i][name], was);
			hex(&now[i][name], is);
			CHECK(is_same(&subject->options[i][name], &now[i][name]),
			      "%s: option %d of level %d was %s, is %s", subject->name, name, levels[i], was, is);
		}
}

int main(void)
{
	for (size_t i = 0; i < SUBJECTS; i++)
		make(&subjects[i], PORT + i);
	for (size_t i = 0; i < SUBJECTS; i++) {
		for (size_t level = 0; level < LEVELS; level++)
			for (int name = 0; name < NAMES; name++)
				if (!is_left_out(&subjects[i], levels[level], name))
					change(&subjects[i], levels[level], name);
		change_others(&subjects[i]);
		look(&subjects[i], subjects[i].options);
	}
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < SUBJECTS; i++)
			compare(&subjects[i]);
		harness_report();
	}
	return 0;
}
