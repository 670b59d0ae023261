/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written is what differs from a fresh socket of the same family, type and protocol, made once for each sort
 * in a dump: defaults depend on the kernel and on sysctls.
 *
 * Some options mean what the program has set only as long as the socket is not connected; then the kernel gives what
 * the connection has come to, which is restored with it, or found again.
 */
#include "kinds/fd/option_table.h"

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/net_tstamp.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "kinds/fd/tcp_stream.h"

/* As those of the header. */
enum {
	OPTION_IP_LOCAL_PORT_RANGE = 51,
	OPTION_TCP_RTO_MAX_MS = 44,
	OPTION_TCP_RTO_MIN_US = 45,
	OPTION_TCP_DELACK_MAX_US = 46,
};

enum { MAX_OPTION_BYTES = 256 };

/* Families whose sockets have it. */
enum { V4 = 1, V6 = 2, UNIX = 4, NETLINK = 8, INET = V4 | V6, ANY = INET | UNIX | NETLINK };

/* Only of TCP sockets that are neither connected nor on the way to it. */
enum { ALWAYS, UNCONNECTED };

struct option_row {
	const char *text;
	int level, name;
	unsigned families;
	int protocol; /* 0 = any */
	enum option_when when;
	socklen_t bytes; /* 0 = the length is part of the value */
	int only;
};

#define ROW(level, name, ...)                   \
	{                                       \
#name, level, name, __VA_ARGS__ \
	}

static const struct option_row rows[] = {
	ROW(SOL_SOCKET, SO_DEBUG, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TIMESTAMP_OLD, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TIMESTAMPNS_OLD, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TIMESTAMP_NEW, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TIMESTAMPNS_NEW, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TIMESTAMPING_OLD, ANY, 0, OPTION_LATE, sizeof(struct so_timestamping), ALWAYS),
	ROW(SOL_SOCKET, SO_TIMESTAMPING_NEW, ANY, 0, OPTION_LATE, sizeof(struct so_timestamping), ALWAYS),
	ROW(SOL_SOCKET, SO_RXQ_OVFL, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_PEEK_OFF, INET | UNIX, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_SELECT_ERR_QUEUE, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_WIFI_STATUS, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_NOFCS, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_BUSY_POLL, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_PREFER_BUSY_POLL, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_MAX_PACING_RATE, ANY, 0, OPTION_LATE, 8, ALWAYS),
	ROW(SOL_SOCKET, SO_INCOMING_CPU, INET, IPPROTO_TCP, OPTION_EARLY, 4, UNCONNECTED),
	ROW(SOL_SOCKET, SO_ZEROCOPY, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TXTIME, ANY, 0, OPTION_LATE, sizeof(struct sock_txtime), ALWAYS),
	ROW(SOL_SOCKET, SO_RESERVE_MEM, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_TXREHASH, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, OPTION_SO_RCVMARK, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, OPTION_SO_RCVPRIORITY, ANY, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, OPTION_SO_PASSPIDFD, UNIX, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, OPTION_SO_PASSRIGHTS, UNIX, 0, OPTION_LATE, 4, ALWAYS),
	ROW(SOL_SOCKET, SO_LOCK_FILTER, ANY, 0, OPTION_LAST, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_TRANSPARENT, INET, 0, OPTION_EARLY, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, INET, 0, OPTION_EARLY, 4, ALWAYS),
	ROW(IPPROTO_IP, OPTION_IP_LOCAL_PORT_RANGE, INET, 0, OPTION_EARLY, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_UNICAST_IF, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVERR, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVERR_RFC4884, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_MTU_DISCOVER, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_MINTTL, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVTTL, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVTOS, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVOPTS, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RETOPTS, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVORIGDSTADDR, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_RECVFRAGSIZE, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_PASSSEC, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_CHECKSUM, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_OPTIONS, INET, 0, OPTION_LATE, 0, ALWAYS),
	ROW(IPPROTO_IP, IP_PKTINFO, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_TTL, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_TOS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_MULTICAST_TTL, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_MULTICAST_LOOP, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IP, IP_MULTICAST_ALL, INET, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_TRANSPARENT, V6, 0, OPTION_EARLY, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_UNICAST_IF, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_UNICAST_HOPS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_TCLASS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVERR, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVERR_RFC4884, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_MTU_DISCOVER, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_DONTFRAG, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_MINHOPCOUNT, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_FLOWINFO, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_FLOWINFO_SEND, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVTCLASS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVRTHDR, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVHOPOPTS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVDSTOPTS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVPATHMTU, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVFRAGSIZE, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_2292PKTINFO, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_2292HOPLIMIT, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_2292HOPOPTS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_2292RTHDR, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_2292DSTOPTS, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_HOPOPTS, V6, 0, OPTION_LATE, 0, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RTHDRDSTOPTS, V6, 0, OPTION_LATE, 0, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_RTHDR, V6, 0, OPTION_LATE, 0, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_DSTOPTS, V6, 0, OPTION_LATE, 0, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_ROUTER_ALERT_ISOLATE, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, V6, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_IPV6, IPV6_MULTICAST_ALL, V6, 0, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_USER_TIMEOUT, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_DEFER_ACCEPT, INET, IPPROTO_TCP, OPTION_EARLY, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_FASTOPEN, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_FASTOPEN_KEY, INET, IPPROTO_TCP, OPTION_LATE, 0, UNCONNECTED),
	ROW(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, INET, IPPROTO_TCP, OPTION_LATE, 4, UNCONNECTED),
	ROW(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, INET, IPPROTO_TCP, OPTION_LATE, 4, UNCONNECTED),
	ROW(IPPROTO_TCP, TCP_MAXSEG, INET, IPPROTO_TCP, OPTION_EARLY, 4, UNCONNECTED),
	ROW(IPPROTO_TCP, TCP_WINDOW_CLAMP, INET, IPPROTO_TCP, OPTION_LATE, 4, UNCONNECTED),
	ROW(IPPROTO_TCP, TCP_SAVE_SYN, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_NOTSENT_LOWAT, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_SYNCNT, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_LINGER2, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_INQ, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, TCP_TX_DELAY, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, OPTION_TCP_RTO_MAX_MS, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, OPTION_TCP_RTO_MIN_US, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_TCP, OPTION_TCP_DELACK_MAX_US, INET, IPPROTO_TCP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_UDP, UDP_CORK, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_UDP, UDP_ENCAP, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_UDP, UDP_SEGMENT, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_UDP, UDP_GRO, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_UDP, UDP_NO_CHECK6_TX, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
	ROW(IPPROTO_UDP, UDP_NO_CHECK6_RX, INET, IPPROTO_UDP, OPTION_LATE, 4, ALWAYS),
};

/* ---- sorts of sockets ---- */

struct option_value {
	int error; /* -errno: the socket does not know the option */
	socklen_t bytes;
	uint8_t data[MAX_OPTION_BYTES];
};

struct socket_sort {
	int family, type, protocol;
};

/* What fresh sockets of a sort have. */
struct option_defaults {
	struct option_defaults *next;
	struct socket_sort sort;
	struct option_value values[ARRAY_SIZE(rows)];
};

static int find_sort(int fd, struct socket_sort *ret_sort)
{
	socklen_t bytes = sizeof(int);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &ret_sort->family, &bytes) < 0 ||
			       getsockopt(fd, SOL_SOCKET, SO_TYPE, &ret_sort->type, &bytes) < 0 ||
			       getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &ret_sort->protocol, &bytes) < 0
		       ? -errno
		       : 0;
}

static bool applies(const struct option_row *row, const struct socket_sort *sort)
{
	unsigned family = sort->family == AF_INET      ? V4
			  : sort->family == AF_INET6   ? V6
			  : sort->family == AF_UNIX    ? UNIX
			  : sort->family == AF_NETLINK ? NETLINK
						       : 0;

	return (row->families & family) && (!row->protocol || row->protocol == sort->protocol);
}

static void get_value(int fd, const struct option_row *row, struct option_value *ret_value)
{
	ret_value->bytes = row->bytes ? row->bytes : sizeof(ret_value->data);
	ret_value->error = getsockopt(fd, row->level, row->name, ret_value->data, &ret_value->bytes) < 0 ? -errno : 0;
}

static bool is_same(const struct option_value *left, const struct option_value *right)
{
	return left->bytes == right->bytes && !memcmp(left->data, right->data, left->bytes);
}

/* ---- dump ---- */

static int find_defaults(struct dump *dump, const struct socket_sort *sort, const struct option_defaults **ret_defaults)
{
	struct option_defaults *defaults = dump->option_defaults;

	while (defaults && memcmp(&defaults->sort, sort, sizeof(*sort)))
		defaults = defaults->next;
	if (!defaults) {
		_cleanup_fd_ int fd = socket(sort->family, sort->type | SOCK_CLOEXEC, sort->protocol);
		if (fd < 0)
			return fail_errno(&dump->failure, errno, "socket-option", NULL, NULL,
					  "cannot make a socket of its sort to compare it with");
		defaults = arena_alloc(&dump->arena, sizeof(*defaults));
		defaults->sort = *sort;
		for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
			if (applies(&rows[i], sort))
				get_value(fd, &rows[i], &defaults->values[i]);
		defaults->next = dump->option_defaults;
		dump->option_defaults = defaults;
	}
	*ret_defaults = defaults;
	return 0;
}

static bool is_unconnected(int fd, const struct socket_sort *sort)
{
	struct tcp_info info = {};
	socklen_t bytes = sizeof(info);

	if (sort->protocol != IPPROTO_TCP || getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) < 0)
		return false;
	return info.tcpi_state == TCP_STATE_CLOSE || info.tcpi_state == TCP_STATE_LISTEN;
}

/* Of a connection that has ended; nobody can set it. */
static bool is_left_over(const struct option_row *row, const struct option_value *value)
{
	enum { MOST = 32767 }; /* the kernel's MAX_TCP_WINDOW */
	int segment;

	memcpy(&segment, value->data, sizeof(segment));
	return row->level == IPPROTO_TCP && row->name == TCP_MAXSEG && segment > MOST;
}

static SocketOptionEntry *make_entry(struct arena *arena, const struct option_row *row,
				     const struct option_value *value)
{
	SocketOptionEntry *entry = arena_message(arena, SocketOptionEntry, socket_option_entry);

	entry->level = (uint32_t)row->level;
	entry->name = (uint32_t)row->name;
	if (row->bytes == sizeof(entry->value)) {
		memcpy(&entry->value, value->data, sizeof(entry->value));
	} else {
		entry->has_data = true;
		entry->data.data = arena_memdup(arena, value->data, value->bytes);
		entry->data.len = value->bytes;
	}
	return entry;
}

int option_table_dump(struct dump *dump, int fd, SkOptsEntry *options)
{
	SocketOptionEntry *found[ARRAY_SIZE(rows)];
	const struct option_defaults *defaults;
	struct socket_sort sort;
	struct option_value value;
	int error = find_sort(fd, &sort);

	if (error < 0)
		return fail_errno(&dump->failure, error, "socket-option", NULL, NULL, "cannot read what sort it is of");
	error = find_defaults(dump, &sort, &defaults);
	if (error < 0)
		return error;
	bool unconnected = is_unconnected(fd, &sort);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (!applies(&rows[i], &sort) || defaults->values[i].error ||
		    (rows[i].only == UNCONNECTED && !unconnected))
			continue;
		get_value(fd, &rows[i], &value);
		if (!value.error && !is_same(&value, &defaults->values[i]) && !is_left_over(&rows[i], &value))
			found[options->n_more_options++] = make_entry(&dump->arena, &rows[i], &value);
	}
	options->more_options = arena_memdup(&dump->arena, found, options->n_more_options * sizeof(found[0]));
	return 0;
}

/* ---- restore ---- */

static int restore_option(struct failure *failure, int fd, const struct option_row *row, const SocketOptionEntry *entry)
{
	const void *data = entry->has_data ? (const void *)entry->data.data : &entry->value;
	size_t bytes = entry->has_data ? entry->data.len : sizeof(entry->value);

	if ((row->bytes && bytes != row->bytes) || bytes > MAX_OPTION_BYTES)
		return fail(failure, EPROTO, "image-socket-option", NULL, NULL,
			    "the socket option %s has %zu bytes in the image", row->text, bytes);
	if (!setsockopt(fd, row->level, row->name, data, bytes))
		return 0;
	return fail_errno(failure, errno, "socket-option", NULL, NULL, "cannot set the socket option %s", row->text);
}

int option_table_restore(struct failure *failure, int fd, enum option_when when, size_t count,
			 SocketOptionEntry *const *options)
{
	struct socket_sort sort = {};
	int error = count ? find_sort(fd, &sort) : 0;

	for (size_t i = 0; i < count && !error; i++)
		for (size_t r = 0; r < ARRAY_SIZE(rows) && !error; r++)
			if (rows[r].level == (int)options[i]->level && rows[r].name == (int)options[i]->name &&
			    rows[r].when == when && applies(&rows[r], &sort))
				error = restore_option(failure, fd, &rows[r], options[i]);
	return error;
}
