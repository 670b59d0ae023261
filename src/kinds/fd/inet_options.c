/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image format has fields for a few options. The others are a table here: an option that differs from a fresh
 * socket of the same kind is written as (level, name, value). Only options of this table are ever set again, so an
 * image cannot set others.
 */
#include "kinds/fd/inet_options.h"

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"

#define CONGESTION_NAME_MAX 16

enum when { EARLY, LATE };

/* For which sockets the option exists; 0 = any. */
struct more_option {
	int family, protocol;
	int level, name;
	enum when when;
};

static const struct more_option more_options[] = {
	{0, 0, IPPROTO_IP, IP_TRANSPARENT, EARLY},
	{0, 0, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, EARLY},
	{0, 0, IPPROTO_IP, IP_RECVERR, LATE},
	{0, 0, IPPROTO_IP, IP_MTU_DISCOVER, LATE},
	{0, 0, IPPROTO_IP, IP_MINTTL, LATE},
	{AF_INET, 0, IPPROTO_IP, IP_RECVTTL, LATE},
	{AF_INET, 0, IPPROTO_IP, IP_RECVTOS, LATE},
	{AF_INET, 0, IPPROTO_IP, IP_RECVORIGDSTADDR, LATE},
	{AF_INET, IPPROTO_UDP, IPPROTO_IP, IP_MULTICAST_TTL, LATE},
	{AF_INET, IPPROTO_UDP, IPPROTO_IP, IP_MULTICAST_LOOP, LATE},
	{AF_INET, IPPROTO_UDP, IPPROTO_IP, IP_MULTICAST_ALL, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_TRANSPARENT, EARLY},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_UNICAST_HOPS, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_TCLASS, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_RECVERR, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_MTU_DISCOVER, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_DONTFRAG, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_RECVTCLASS, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, LATE},
	{AF_INET6, IPPROTO_UDP, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, LATE},
	{AF_INET6, IPPROTO_UDP, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, LATE},
	{AF_INET6, 0, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, LATE},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_USER_TIMEOUT, LATE},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_DEFER_ACCEPT, EARLY},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_FASTOPEN, LATE},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_NOTSENT_LOWAT, LATE},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_SYNCNT, LATE},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_LINGER2, LATE},
	{0, IPPROTO_TCP, IPPROTO_TCP, TCP_INQ, LATE},
	{AF_INET6, IPPROTO_UDP, IPPROTO_IPV6, IPV6_MULTICAST_ALL, LATE},
	{0, IPPROTO_UDP, SOL_SOCKET, SO_PEEK_OFF, LATE},
	{0, IPPROTO_UDP, IPPROTO_UDP, UDP_CORK, LATE},
	{0, IPPROTO_UDP, IPPROTO_UDP, UDP_SEGMENT, LATE},
	{0, IPPROTO_UDP, IPPROTO_UDP, UDP_GRO, LATE},
	{0, IPPROTO_UDP, IPPROTO_UDP, UDP_NO_CHECK6_TX, LATE},
	{0, IPPROTO_UDP, IPPROTO_UDP, UDP_NO_CHECK6_RX, LATE},
};

static bool option_applies(const struct more_option *option, const InetSkEntry *entry)
{
	return (!option->family || option->family == (int)entry->family) &&
	       (!option->protocol || option->protocol == (int)entry->proto);
}

/* Of an int; -errno where the socket does not know the option. */
static int get_option(int fd, int level, int name, int *ret_value)
{
	int value = 0;
	socklen_t size = sizeof(value);

	if (getsockopt(fd, level, name, &value, &size))
		return -errno;
	*ret_value = value;
	return 0;
}

/* A bool of the image, where it is on. */
static void get_flag(int fd, int level, int name, protobuf_c_boolean *has, protobuf_c_boolean *ret_flag)
{
	int value;

	if (!get_option(fd, level, name, &value) && value)
		*has = *ret_flag = true;
}

static void get_number(int fd, int level, int name, protobuf_c_boolean *has, uint32_t *ret_number)
{
	int value;

	if (!get_option(fd, level, name, &value)) {
		*has = true;
		*ret_number = (uint32_t)value;
	}
}

static IpOptsEntry *dump_ip(struct arena *arena, int fd, const InetSkEntry *entry)
{
	IpOptsEntry *ip = arena_message(arena, IpOptsEntry, ip_opts_entry);

	if (entry->family == AF_INET6) {
		get_flag(fd, IPPROTO_IPV6, IPV6_FREEBIND, &ip->has_freebind, &ip->freebind);
		get_flag(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &ip->has_pktinfo, &ip->pktinfo);
		return ip;
	}
	get_flag(fd, IPPROTO_IP, IP_FREEBIND, &ip->has_freebind, &ip->freebind);
	get_flag(fd, IPPROTO_IP, IP_PKTINFO, &ip->has_pktinfo, &ip->pktinfo);
	get_number(fd, IPPROTO_IP, IP_TTL, &ip->has_ttl, &ip->ttl);
	get_number(fd, IPPROTO_IP, IP_TOS, &ip->has_tos, &ip->tos);
	ip->has_tos = ip->tos != 0;
	return ip;
}

static TcpOptsEntry *dump_tcp(struct arena *arena, int fd, const InetSkEntry *entry)
{
	TcpOptsEntry *tcp = arena_message(arena, TcpOptsEntry, tcp_opts_entry);

	if (entry->type != SOCK_STREAM)
		return tcp;
	get_flag(fd, IPPROTO_TCP, TCP_CORK, &tcp->has_cork, &tcp->cork);
	get_flag(fd, IPPROTO_TCP, TCP_NODELAY, &tcp->has_nodelay, &tcp->nodelay);
	get_number(fd, IPPROTO_TCP, TCP_KEEPCNT, &tcp->has_keepcnt, &tcp->keepcnt);
	get_number(fd, IPPROTO_TCP, TCP_KEEPIDLE, &tcp->has_keepidle, &tcp->keepidle);
	get_number(fd, IPPROTO_TCP, TCP_KEEPINTVL, &tcp->has_keepintvl, &tcp->keepintvl);
	return tcp;
}

static void dump_congestion(struct arena *arena, int fd, int fresh_fd, InetSkEntry *entry)
{
	char name[CONGESTION_NAME_MAX + 1] = "", fresh_name[CONGESTION_NAME_MAX + 1] = "";
	socklen_t size = CONGESTION_NAME_MAX, fresh_size = CONGESTION_NAME_MAX;

	if (entry->type == SOCK_STREAM && !getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &size) &&
	    !getsockopt(fresh_fd, IPPROTO_TCP, TCP_CONGESTION, fresh_name, &fresh_size) && strcmp(name, fresh_name))
		entry->congestion = arena_strdup(arena, name);
}

static void dump_more(struct arena *arena, int fd, InetSkEntry *entry)
{
	_cleanup_fd_ int fresh_fd = socket((int)entry->family, (int)entry->type | SOCK_CLOEXEC, (int)entry->proto);

	if (fresh_fd < 0)
		return;
	entry->more_options = arena_alloc(arena, ARRAY_SIZE(more_options) * sizeof(*entry->more_options));
	for (size_t i = 0; i < ARRAY_SIZE(more_options); i++) {
		const struct more_option *option = &more_options[i];
		SocketOptionEntry *found;
		int value, fresh_value;

		if (!option_applies(option, entry) || get_option(fd, option->level, option->name, &value) ||
		    get_option(fresh_fd, option->level, option->name, &fresh_value) || value == fresh_value)
			continue;
		found = arena_message(arena, SocketOptionEntry, socket_option_entry);
		found->level = (uint32_t)option->level;
		found->name = (uint32_t)option->name;
		found->value = value;
		entry->more_options[entry->n_more_options++] = found;
	}
	dump_congestion(arena, fd, fresh_fd, entry);
}

int inet_options_dump(struct failure *failure, struct arena *arena, int fd, bool with_extensions, InetSkEntry *entry)
{
	if (entry->family == AF_INET6) {
		int value;
		int ret = get_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value);

		if (ret)
			return fail_errno(failure, ret, "inet-options", NULL, NULL, "cannot read IPV6_V6ONLY");
		entry->has_v6only = true;
		entry->v6only = value;
	}
	entry->ip_opts = dump_ip(arena, fd, entry);
	entry->tcp_opts = dump_tcp(arena, fd, entry);
	if (with_extensions)
		dump_more(arena, fd, entry);
	return 0;
}

static int set_option(struct failure *failure, int fd, int level, int name, int value)
{
	if (!setsockopt(fd, level, name, &value, sizeof(value)))
		return 0;
	return fail_errno(failure, errno, "inet-options", NULL, NULL, "cannot set option %d of level %d to %d", name,
			  level, value);
}

static int restore_more(struct failure *failure, int fd, const InetSkEntry *entry, enum when when)
{
	int ret = 0;

	for (size_t i = 0; i < entry->n_more_options && !ret; i++) {
		const SocketOptionEntry *wanted = entry->more_options[i];

		for (size_t k = 0; k < ARRAY_SIZE(more_options); k++) {
			const struct more_option *option = &more_options[k];

			if (option->level != (int)wanted->level || option->name != (int)wanted->name ||
			    option->when != when || !option_applies(option, entry))
				continue;
			ret = set_option(failure, fd, option->level, option->name, wanted->value);
			break;
		}
	}
	return ret;
}

int inet_options_restore_early(struct failure *failure, int fd, const InetSkEntry *entry)
{
	bool is_ipv6 = entry->family == AF_INET6;
	int ret = 0;

	if (is_ipv6 && entry->has_v6only)
		ret = set_option(failure, fd, IPPROTO_IPV6, IPV6_V6ONLY, entry->v6only);
	if (!ret && entry->ip_opts && entry->ip_opts->freebind)
		ret = set_option(failure, fd, is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP,
				 is_ipv6 ? IPV6_FREEBIND : IP_FREEBIND, 1);
	return ret ? ret : restore_more(failure, fd, entry, EARLY);
}

static int restore_ip(struct failure *failure, int fd, const InetSkEntry *entry)
{
	const IpOptsEntry *ip = entry->ip_opts;
	bool is_ipv6 = entry->family == AF_INET6;
	int ret = 0;

	if (!ip)
		return 0;
	if (ip->pktinfo)
		ret = set_option(failure, fd, is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP,
				 is_ipv6 ? IPV6_RECVPKTINFO : IP_PKTINFO, 1);
	if (!ret && ip->has_ttl && ip->ttl)
		ret = set_option(failure, fd, IPPROTO_IP, IP_TTL, (int)ip->ttl);
	if (!ret && ip->has_tos)
		ret = set_option(failure, fd, IPPROTO_IP, IP_TOS, (int)ip->tos);
	return ret;
}

static int restore_tcp(struct failure *failure, int fd, const TcpOptsEntry *tcp)
{
	int ret = 0;

	if (tcp->has_keepcnt)
		ret = set_option(failure, fd, IPPROTO_TCP, TCP_KEEPCNT, (int)tcp->keepcnt);
	if (!ret && tcp->has_keepidle)
		ret = set_option(failure, fd, IPPROTO_TCP, TCP_KEEPIDLE, (int)tcp->keepidle);
	if (!ret && tcp->has_keepintvl)
		ret = set_option(failure, fd, IPPROTO_TCP, TCP_KEEPINTVL, (int)tcp->keepintvl);
	if (!ret && tcp->nodelay)
		ret = set_option(failure, fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (!ret && tcp->cork)
		ret = set_option(failure, fd, IPPROTO_TCP, TCP_CORK, 1);
	return ret;
}

int inet_options_restore(struct failure *failure, int fd, const InetSkEntry *entry)
{
	int ret = restore_ip(failure, fd, entry);

	if (!ret && entry->type == SOCK_STREAM && entry->tcp_opts)
		ret = restore_tcp(failure, fd, entry->tcp_opts);
	if (!ret && entry->congestion &&
	    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, entry->congestion, strlen(entry->congestion)))
		ret = fail_errno(failure, errno, "inet-options", NULL, "load the kernel module tcp_<name>",
				 "congestion control \"%s\" cannot be set", entry->congestion);
	return ret ? ret : restore_more(failure, fd, entry, LATE);
}
