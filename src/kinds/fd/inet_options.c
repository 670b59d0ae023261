/* SPDX-License-Identifier: Apache-2.0 */
/* Options of IP and TCP that the image format has fields for; option_table.c has the others. */
#include "kinds/fd/inet_options.h"

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "kinds/fd/option_table.h"

#define CONGESTION_NAME_MAX 16

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

static void dump_congestion(struct arena *arena, int fd, InetSkEntry *entry)
{
	char name[CONGESTION_NAME_MAX + 1] = "", fresh_name[CONGESTION_NAME_MAX + 1] = "";
	socklen_t size = CONGESTION_NAME_MAX, fresh_size = CONGESTION_NAME_MAX;
	_cleanup_fd_ int fresh_fd = -1;

	if (entry->type != SOCK_STREAM)
		return;
	fresh_fd = socket((int)entry->family, (int)entry->type | SOCK_CLOEXEC, (int)entry->proto);
	if (fresh_fd >= 0 && !getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &size) &&
	    !getsockopt(fresh_fd, IPPROTO_TCP, TCP_CONGESTION, fresh_name, &fresh_size) && strcmp(name, fresh_name))
		entry->congestion = arena_strdup(arena, name);
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
		dump_congestion(arena, fd, entry);
	return 0;
}

static int set_option(struct failure *failure, int fd, int level, int name, int value)
{
	if (!setsockopt(fd, level, name, &value, sizeof(value)))
		return 0;
	return fail_errno(failure, errno, "inet-options", NULL, NULL, "cannot set option %d of level %d to %d", name,
			  level, value);
}

/* Those of old images too. */
static int restore_more(struct failure *failure, int fd, const InetSkEntry *entry, enum option_when when)
{
	int ret = option_table_restore(failure, fd, when, entry->n_more_options, entry->more_options);

	return ret ? ret
		   : option_table_restore(failure, fd, when, entry->opts->n_more_options, entry->opts->more_options);
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
	return ret ? ret : restore_more(failure, fd, entry, OPTION_EARLY);
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
	return ret ? ret : restore_more(failure, fd, entry, OPTION_LATE);
}
