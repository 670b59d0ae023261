/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internet sockets: TCP (closed, bound, listening, connected), UDP and UDP-Lite, over IPv4 and IPv6.
 *
 * The kernel tells nearly all of it through getsockopt() on our own descriptor of the socket. It has no call for
 * - which halves of a socket are shut down: poll() shows it (POLLRDHUP, POLLHUP), and the state of a connection;
 * - the connections that wait in a listener's queue: they belong to no descriptor yet. accept() would take them from
 *   the program, so a dump says no unless it may drop them.
 * UDP's own state is in udp.c.
 *
 * At restore, listeners and connections share ports that bind() would refuse to share. A connection is bound in
 * repair mode, which forces its way; a listener is bound and listens with SO_REUSEADDR, while every connection of the
 * tree is in repair mode still, and gets its own flag after that. A foreign listener on the port still is an error.
 */
#include "kinds/fd/fd_kind.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "kinds/fd/inet_options.h"
#include "kinds/fd/socket_options.h"
#include "kinds/fd/tcp_connections.h"
#include "kinds/fd/tcp_stream.h"
#include "kinds/fd/udp.h"

extern const struct fd_kind inet_kind;

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

#define PORT_MAX 65535
#define IMAGE_NETNS_ID 2 /* the one network namespace of a dump, as the ids of its tasks say */

union socket_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* SO_DOMAIN, SO_TYPE, SO_PROTOCOL; -1 if it is no socket. */
static int socket_option(int fd, int option)
{
	int value = -1;
	socklen_t size = sizeof(value);

	if (getsockopt(fd, SOL_SOCKET, option, &value, &size))
		return -1;
	return value;
}

static bool inet_match(const struct target_fd *target)
{
	int domain = S_ISSOCK(target->stat.st_mode) ? socket_option(target->fd, SO_DOMAIN) : -1;

	return domain == AF_INET || domain == AF_INET6;
}

static uint16_t address_port(const union socket_address *address)
{
	return ntohs(address->any.sa_family == AF_INET6 ? address->v6.sin6_port : address->v4.sin_port);
}

/* The address as the image has it: one or four words in network byte order. */
static size_t address_words(struct arena *arena, int family, const union socket_address *address, uint32_t **ret_words)
{
	size_t count = family == AF_INET6 ? 4 : 1;

	*ret_words = arena_alloc(arena, count * sizeof(uint32_t));
	if (address->any.sa_family == AF_INET6)
		memcpy(*ret_words, &address->v6.sin6_addr, 16);
	else if (address->any.sa_family == AF_INET)
		memcpy(*ret_words, &address->v4.sin_addr, 4);
	return count;
}

/* Both names of the socket. Returns true if it has a peer. */
static bool dump_addresses(struct dump *dump, int fd, InetSkEntry *entry)
{
	union socket_address local = {0}, remote = {0};
	socklen_t local_size = sizeof(local), remote_size = sizeof(remote);
	bool connected;
	char name[IF_NAMESIZE];

	getsockname(fd, &local.any, &local_size);
	connected = !getpeername(fd, &remote.any, &remote_size);
	entry->n_src_addr = address_words(&dump->arena, (int)entry->family, &local, &entry->src_addr);
	entry->n_dst_addr = address_words(&dump->arena, (int)entry->family, &remote, &entry->dst_addr);
	entry->src_port = address_port(&local);
	entry->dst_port = connected ? address_port(&remote) : 0;
	if (local.any.sa_family == AF_INET6 && local.v6.sin6_scope_id && if_indextoname(local.v6.sin6_scope_id, name))
		entry->ifname = arena_strdup(&dump->arena, name);
	return connected;
}

static void words_to_address(const InetSkEntry *entry, const uint32_t *words, size_t count, uint32_t port,
			     union socket_address *ret_address, socklen_t *ret_size)
{
	memset(ret_address, 0, sizeof(*ret_address));
	ret_address->any.sa_family = (sa_family_t)entry->family;
	if (entry->family == AF_INET6) {
		ret_address->v6.sin6_port = htons((uint16_t)port);
		if (count == 4)
			memcpy(&ret_address->v6.sin6_addr, words, 16);
		if (entry->ifname && IN6_IS_ADDR_LINKLOCAL(&ret_address->v6.sin6_addr))
			ret_address->v6.sin6_scope_id = if_nametoindex(entry->ifname);
		*ret_size = sizeof(ret_address->v6);
		return;
	}
	ret_address->v4.sin_port = htons((uint16_t)port);
	if (count == 1)
		ret_address->v4.sin_addr.s_addr = words[0];
	*ret_size = sizeof(ret_address->v4);
}

static bool is_mapped(const uint32_t *words)
{
	return !words[0] && !words[1] && words[2] == htonl(0xffff);
}

/* The two ends as packets have them: a mapped address is one of IPv4. */
static void entry_to_connection(const InetSkEntry *entry, struct connection *ret_connection)
{
	bool mapped = entry->family == AF_INET6 && is_mapped(entry->src_addr);
	size_t skip = mapped ? 3 : 0;
	size_t count = entry->family == AF_INET6 && !mapped ? 4 : 1;

	memset(ret_connection, 0, sizeof(*ret_connection));
	ret_connection->family = count == 4 ? AF_INET6 : AF_INET;
	ret_connection->local_port = (uint16_t)entry->src_port;
	ret_connection->remote_port = (uint16_t)entry->dst_port;
	memcpy(ret_connection->local, entry->src_addr + skip, count * sizeof(uint32_t));
	memcpy(ret_connection->remote, entry->dst_addr + skip, count * sizeof(uint32_t));
}

static SkShutdown polled_shutdown(int fd)
{
	struct pollfd event = {.fd = fd, .events = POLLRDHUP};

	if (poll(&event, 1, 0) <= 0 || !(event.revents & POLLRDHUP))
		return SK_SHUTDOWN__NONE;
	return event.revents & POLLHUP ? SK_SHUTDOWN__BOTH : SK_SHUTDOWN__READ;
}

static void set_shutdown(InetSkEntry *entry, SkShutdown value)
{
	entry->has_shutdown = value != SK_SHUTDOWN__NONE;
	entry->shutdown = value;
}

/* Listeners of multipath TCP (Go programs make them by default) are like those of TCP. */
static bool is_tcp(const InetSkEntry *entry)
{
	return entry->type == SOCK_STREAM && (entry->proto == IPPROTO_TCP || entry->proto == IPPROTO_MPTCP);
}

/* Kinds of internet sockets that have state which cannot be read or set. */
static int refuse_protocol(struct dump *dump, const InetSkEntry *entry)
{
	const char *what = "a socket of an unknown protocol";

	if (is_tcp(entry))
		return 0;
	if (entry->type == SOCK_DGRAM && (entry->proto == IPPROTO_UDP || entry->proto == IPPROTO_UDPLITE))
		return 0;
	if (entry->type == SOCK_RAW) {
		what = "a raw socket";
	} else if (entry->type == SOCK_DGRAM) {
		what = "a ping socket";
	} else if (entry->proto == IPPROTO_SCTP) {
		what = "an SCTP socket";
	} else if (entry->proto == IPPROTO_DCCP) {
		what = "a DCCP socket";
	}
	return fail(&dump->failure, EOPNOTSUPP, "fd-inet-protocol", NULL, "its owner must close it before the dump",
		    "%s (internet socket, type %u, protocol %u) cannot be checkpointed", what, entry->type,
		    entry->proto);
}

static int dump_listener(struct dump *dump, const struct tcp_info *info, InetSkEntry *entry)
{
	entry->backlog = info->tcpi_sacked; /* for a listener: the limit and the length of its queue */
	if (!info->tcpi_unacked)
		return 0;
	if (!dump->options->tcp_skip_in_flight)
		return fail(&dump->failure, EBUSY, "fd-tcp-in-flight", NULL,
			    "dump again in a moment, or drop them with --skip-in-flight",
			    "port %u: %u connections wait to be accepted by the program", entry->src_port,
			    info->tcpi_unacked);
	log_warn("port %u: %u connections that wait to be accepted will not be restored", entry->src_port,
		 info->tcpi_unacked);
	return 0;
}

/* A handshake that is under way has no state that could be set again. */
static int dump_connecting(struct dump *dump, InetSkEntry *entry)
{
	if (!dump->options->tcp_skip_in_flight)
		return fail(&dump->failure, EBUSY, "fd-tcp-in-flight", NULL,
			    "dump again in a moment, or let it come back closed with --skip-in-flight",
			    "a TCP connection to port %u is just being made", entry->dst_port);
	entry->state = TCP_STATE_CLOSE;
	entry->src_port = 0;
	set_shutdown(entry, SK_SHUTDOWN__BOTH);
	return 0;
}

/* Bytes that the program has not read outlive the connection. */
static int dump_unread(struct dump *dump, const struct target_fd *target, const InetSkEntry *entry)
{
	struct tcp_stream *stream = tcp_stream_new();
	int ret = tcp_stream_read_ended(&dump->failure, target->fd, stream);

	if (!ret && stream->entry.inq_len && !dump->only_explain)
		ret = tcp_stream_write(dump->images_dirfd, &dump->failure, entry->ino, stream);
	tcp_stream_free(stream);
	return ret;
}

/* A closed socket may have a name; one whose connection has ended has none, but perhaps unread bytes. */
static int dump_closed(struct dump *dump, const struct target_fd *target, InetSkEntry *entry)
{
	entry->state = TCP_STATE_CLOSE;
	if (polled_shutdown(target->fd) == SK_SHUTDOWN__NONE)
		return 0;
	set_shutdown(entry, SK_SHUTDOWN__BOTH);
	entry->src_port = 0;
	return dump_unread(dump, target, entry);
}

/* A layer above TCP (kernel TLS) has keys and records that nobody can read. */
static int refuse_upper_layer(struct dump *dump, int fd)
{
	char name[17] = "";
	socklen_t size = sizeof(name) - 1;

	if (getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &size) || !size || !name[0])
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "fd-tcp-ulp", NULL, "switch kernel TLS off in the program",
		    "the TCP connection has the kernel layer \"%s\", whose state cannot be read", name);
}

static int dump_tcp(struct dump *dump, const struct target_fd *target, InetSkEntry *entry)
{
	struct connection connection;
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);
	int ret;

	if (getsockopt(target->fd, IPPROTO_TCP, TCP_INFO, &info, &size))
		return fail_errno(&dump->failure, errno, "fd-tcp", NULL, NULL, "cannot read TCP_INFO");
	entry->state = info.tcpi_state;
	if (entry->state == TCP_STATE_LISTEN)
		return dump_listener(dump, &info, entry);
	if (entry->state == TCP_STATE_SYN_SENT || entry->state == TCP_STATE_SYN_RECEIVED)
		return dump_connecting(dump, entry);
	if (!tcp_state_is_connected(entry->state))
		return dump_closed(dump, target, entry);
	if (entry->proto == IPPROTO_MPTCP)
		return fail(&dump->failure, EOPNOTSUPP, "fd-mptcp", NULL, "use plain TCP in the program or its peer",
			    "an established multipath TCP connection cannot be checkpointed");
	ret = refuse_upper_layer(dump, target->fd);
	if (ret)
		return ret;
	set_shutdown(entry, polled_shutdown(target->fd) & SK_SHUTDOWN__READ);
	entry_to_connection(entry, &connection);
	tcp_dump_add(dump, (struct tcp_dump **)dump_kind_state(dump, &inet_kind), target, entry, &connection);
	return 0;
}

static void dump_owner(struct dump *dump, const struct target_fd *target, InetSkEntry *entry)
{
	entry->has_ns_id = true;
	entry->ns_id = IMAGE_NETNS_ID;
	if (dump->options->format_plain)
		return;
	entry->has_uid = target->stat.st_uid != 0;
	entry->uid = target->stat.st_uid;
	entry->has_gid = target->stat.st_gid != 0;
	entry->gid = target->stat.st_gid;
}

static int inet_dump(struct dump *dump, const struct target_fd *target, FileEntry *file)
{
	InetSkEntry *entry = arena_message(&dump->arena, InetSkEntry, inet_sk_entry);
	bool connected;
	int ret;

	entry->id = target->file->id;
	entry->ino = (uint32_t)target->stat.st_ino;
	entry->family = (uint32_t)socket_option(target->fd, SO_DOMAIN);
	entry->type = (uint32_t)socket_option(target->fd, SO_TYPE);
	entry->proto = (uint32_t)socket_option(target->fd, SO_PROTOCOL);
	entry->flags = (uint32_t)target->flags;
	entry->fown = target->fown;
	ret = refuse_protocol(dump, entry);
	if (ret)
		return ret;
	connected = dump_addresses(dump, target->fd, entry);
	dump_owner(dump, target, entry);
	ret = socket_options_dump(dump, target->fd, &entry->opts);
	if (!ret)
		ret = inet_options_dump(&dump->failure, &dump->arena, target->fd, !dump->options->format_plain, entry);
	if (ret)
		return ret;
	file->isk = entry;
	if (is_tcp(entry))
		return dump_tcp(dump, target, entry);
	entry->state = connected ? TCP_STATE_ESTABLISHED : TCP_STATE_CLOSE;
	return udp_dump(dump, target->fd, entry);
}

static int inet_dump_finish(struct dump *dump)
{
	return tcp_dump_finish(dump, *dump_kind_state(dump, &inet_kind));
}

static void inet_dump_release(struct dump *dump, bool tree_is_gone)
{
	tcp_dump_release(dump, (struct tcp_dump **)dump_kind_state(dump, &inet_kind), tree_is_gone);
}

static int check_entry(struct restore *restore, const InetSkEntry *entry)
{
	size_t words = entry->family == AF_INET6 ? 4 : 1;
	const char *wrong = NULL;

	if (entry->family != AF_INET && entry->family != AF_INET6)
		wrong = "family";
	else if (entry->type != SOCK_STREAM && entry->type != SOCK_DGRAM)
		wrong = "type";
	else if (!is_tcp(entry) &&
		 (entry->type == SOCK_STREAM || (entry->proto != IPPROTO_UDP && entry->proto != IPPROTO_UDPLITE)))
		wrong = "proto";
	else if (entry->n_src_addr != words || entry->n_dst_addr != words)
		wrong = "src_addr or dst_addr";
	else if (entry->src_port > PORT_MAX || entry->dst_port > PORT_MAX)
		wrong = "src_port or dst_port";
	else if (!entry->state || entry->state > TCP_STATE_CLOSING)
		wrong = "state";
	else if (entry->shutdown > SK_SHUTDOWN__BOTH)
		wrong = "shutdown";
	else
		wrong = udp_wrong_part(entry);
	if (wrong)
		return fail(&restore->failure, EINVAL, "image-inet", NULL, NULL,
			    "files.img: internet socket %u: %s is out of range or of a kind that cannot be restored",
			    entry->id, wrong);
	return 0;
}

static int inet_prepare(struct restore *restore)
{
	for (size_t i = 0; i < restore->file_count; i++) {
		struct restore_file *file = restore->files[i];
		struct inet_restore_file *inet;
		int ret;

		if (file->kind != &inet_kind)
			continue;
		if (!file->entry->isk)
			return fail(&restore->failure, EINVAL, "image-inet", NULL, NULL,
				    "files.img: file %u has no inet socket entry", file->id);
		ret = check_entry(restore, file->entry->isk);
		if (ret)
			return ret;
		inet = arena_alloc(&restore->arena, sizeof(*inet));
		inet->is_connection =
			file->entry->isk->proto == IPPROTO_TCP && tcp_state_is_connected(file->entry->isk->state);
		if (inet->is_connection)
			entry_to_connection(file->entry->isk, &inet->connection);
		file->kind_data = inet;
	}
	return tcp_restore_prepare(restore, &inet_kind, (struct tcp_restore **)restore_kind_state(restore, &inet_kind));
}

static int inet_before_open(struct restore *restore)
{
	tcp_restore_lock(restore, *(struct tcp_restore **)restore_kind_state(restore, &inet_kind));
	return 0;
}

static int set_flag(int fd, int option, int value)
{
	return setsockopt(fd, SOL_SOCKET, option, &value, sizeof(value)) ? -errno : 0;
}

/* A socket with what must be set before bind(). */
static int open_socket(struct restore *restore, const InetSkEntry *entry, int *ret_fd)
{
	_cleanup_fd_ int fd = socket((int)entry->family, (int)entry->type | SOCK_CLOEXEC, (int)entry->proto);
	const SkOptsEntry *options = entry->opts;
	int ret;

	if (fd < 0)
		return fail_errno(&restore->failure, errno, "restore-inet", NULL, NULL,
				  "cannot make an internet socket (family %u, type %u, protocol %u)", entry->family,
				  entry->type, entry->proto);
	if ((entry->has_uid || entry->has_gid) &&
	    fchown(fd, entry->has_uid ? entry->uid : (uid_t)-1, entry->has_gid ? entry->gid : (gid_t)-1))
		log_debug("socket %u keeps criu's owner: %s", entry->id, strerror(errno));
	ret = set_flag(fd, SO_REUSEADDR, is_tcp(entry) || options->reuseaddr);
	if (!ret && options->so_reuseport)
		ret = set_flag(fd, SO_REUSEPORT, 1);
	if (!ret && options->so_bound_dev &&
	    setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, options->so_bound_dev, strlen(options->so_bound_dev) + 1))
		ret = -errno;
	if (!ret && options->has_so_mark && options->so_mark)
		ret = set_flag(fd, SO_MARK, (int)options->so_mark);
	if (ret)
		return fail_errno(&restore->failure, ret, "restore-inet", NULL, NULL,
				  "cannot set the options that an internet socket needs before bind()");
	ret = inet_options_restore_early(&restore->failure, fd, entry);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

static int bind_socket(int fd, const InetSkEntry *entry)
{
	union socket_address local;
	socklen_t size;

	words_to_address(entry, entry->src_addr, entry->n_src_addr, entry->src_port, &local, &size);
	return bind(fd, &local.any, size) ? -errno : 0;
}

static int connect_socket(int fd, const InetSkEntry *entry)
{
	union socket_address remote;
	socklen_t size;

	words_to_address(entry, entry->dst_addr, entry->n_dst_addr, entry->dst_port, &remote, &size);
	return connect(fd, &remote.any, size) ? -errno : 0;
}

static int fail_bind(struct restore *restore, int error, const InetSkEntry *entry)
{
	const char *hint = NULL;

	if (error == -EADDRINUSE)
		hint = "end the program that uses the port, or restore in another network namespace";
	else if (error == -EADDRNOTAVAIL)
		hint = "add the address to this host before the restore";
	return fail_errno(&restore->failure, error, "restore-inet-bind", NULL, hint, "cannot bind to %s port %u",
			  is_tcp(entry) ? "TCP" : "UDP", entry->src_port);
}

/* What a program sees of a connection that was reset: end of file, and an error when it writes. */
static void close_both_ways(int fd)
{
	shutdown(fd, SHUT_RDWR); /* says ENOTCONN, and does it */
}

static int open_listener(struct restore *restore, const InetSkEntry *entry, int fd)
{
	int ret = bind_socket(fd, entry);

	return ret ? fail_bind(restore, ret, entry) : 0;
}

/* What is left of a connection that has ended: unread bytes, if there were any. */
static int open_ended(struct restore *restore, const InetSkEntry *entry, int fd)
{
	struct tcp_stream *stream;
	char name[64];
	int ret;

	image_name(IMAGE_TCP_STREAM, entry->ino, name, sizeof(name));
	ret = restore_image_fetch(restore, IMAGE_TCP_STREAM, entry->ino);
	if (ret)
		return ret;
	if (faccessat(restore->images_dirfd, name, F_OK, 0)) {
		close_both_ways(fd);
		return 0;
	}
	ret = tcp_stream_load(restore->images_dirfd, &restore->failure, entry->ino, TCP_STATE_CLOSE, &stream);
	if (ret)
		return ret;
	ret = tcp_stream_restore_ended(&restore->failure, fd, (int)entry->family, stream);
	tcp_stream_free(stream);
	return ret;
}

static int open_closed_tcp(struct restore *restore, const InetSkEntry *entry, int fd)
{
	int ret;

	if (entry->has_shutdown && entry->shutdown != SK_SHUTDOWN__NONE)
		return open_ended(restore, entry, fd);
	ret = entry->src_port ? bind_socket(fd, entry) : 0;
	return ret ? fail_bind(restore, ret, entry) : 0;
}

static int open_udp(struct restore *restore, const InetSkEntry *entry, int fd)
{
	bool connected = entry->state == TCP_STATE_ESTABLISHED;

	/* What a datagram tells besides is kept only if it is asked for when it arrives. */
	int ret = entry->n_queue ? inet_options_restore(&restore->failure, fd, entry) : 0;

	if (ret)
		return ret;
	udp_fill_queue(entry, fd);
	ret = entry->src_port ? bind_socket(fd, entry) : 0;

	/* The kernel chose the address of a connected socket, here it may choose another one. */
	if (ret == -EADDRNOTAVAIL && connected) {
		log_warn("UDP socket %u: its local address does not exist on this host", entry->id);
		ret = 0;
	}
	if (ret)
		return fail_bind(restore, ret, entry);
	ret = connected ? connect_socket(fd, entry) : 0;
	if (ret)
		return fail_errno(&restore->failure, ret, "restore-inet-connect", NULL,
				  "give this host a route to the peer", "cannot connect a UDP socket to port %u",
				  entry->dst_port);
	if (entry->has_shutdown && entry->shutdown != SK_SHUTDOWN__NONE)
		shutdown(fd, (int)entry->shutdown - 1);
	return 0;
}

/* May the connection come back closed, since this host is no place for it? */
static bool may_come_back_closed(const struct restore *restore, int error)
{
	if (restore->options->tcp_established)
		return false;
	return error == -EADDRNOTAVAIL || error == -EADDRINUSE || error == -ENETUNREACH || error == -EHOSTUNREACH ||
	       error == -ENETDOWN || error == -ENODEV || error == -EINVAL;
}

/* Attaches the socket to its connection. Returns 0, 1 if it shall come back closed, or a failure. */
static int attach(struct restore *restore, const struct inet_restore_file *inet, const InetSkEntry *entry, int fd)
{
	union socket_address remote;
	socklen_t size;
	char text[128];
	int reuse, ret;

	connection_text(&inet->connection, text, sizeof(text));
	ret = tcp_repair_begin(fd, &reuse);
	if (ret)
		return fail_errno(&restore->failure, ret, "restore-tcp", NULL, "criu needs CAP_NET_ADMIN",
				  "connection %s: cannot switch on TCP_REPAIR", text);
	words_to_address(entry, entry->dst_addr, entry->n_dst_addr, entry->dst_port, &remote, &size);
	ret = bind_socket(fd, entry);
	if (!ret)
		ret = tcp_stream_attach(fd, inet->stream, &remote.any, size);
	if (!ret)
		return 0;
	if (!may_come_back_closed(restore, ret))
		return fail_errno(&restore->failure, ret, "restore-tcp-address", NULL,
				  ret == -EADDRNOTAVAIL ? "give this host the address, or end the other owner of the "
							  "connection; without --tcp-established it comes back closed"
							: NULL,
				  "connection %s cannot be made again", text);
	log_warn("connection %s comes back closed: %s", text, strerror(-ret));
	return 1;
}

static int open_connection(struct restore *restore, struct inet_restore_file *inet, const InetSkEntry *entry, int *fd)
{
	int ret = restore_image_fetch(restore, IMAGE_TCP_STREAM, entry->ino);
	char text[128];

	if (!ret)
		ret = tcp_stream_load(restore->images_dirfd, &restore->failure, entry->ino, entry->state,
				      &inet->stream);
	if (ret)
		return ret;
	ret = attach(restore, inet, entry, *fd);
	if (ret == 1) {
		tcp_stream_free(inet->stream);
		inet->stream = NULL;
		/* A new socket: the old one has sequence numbers and perhaps a name. */
		close(*fd);
		*fd = -1;
		ret = open_socket(restore, entry, fd);
		if (!ret)
			close_both_ways(*fd);
		return ret;
	}
	if (!ret)
		ret = tcp_stream_fill(&restore->failure, *fd, inet->stream, &inet->connection);
	if (ret)
		return fail_in(&restore->failure, "connection %s",
			       connection_text(&inet->connection, text, sizeof(text)));
	return 0;
}

static bool comes_back_closed(const struct restore *restore, const struct inet_restore_file *inet)
{
	bool tcp_close =
		restore->options->tcp_close || (restore->inventory->has_tcp_close && restore->inventory->tcp_close);

	return tcp_close && inet->is_connection && !inet->inside;
}

/* Every connection is bound, and in repair mode. */
static int inet_connect(struct restore *restore, struct restore_file *file, int fd)
{
	const InetSkEntry *entry = file->entry->isk;

	if (is_tcp(entry) && entry->state == TCP_STATE_LISTEN && listen(fd, (int)entry->backlog))
		return fail_bind(restore, -errno, entry);
	return 0;
}

/* Every connection has its queues: they may talk. */
static int inet_finish(struct restore *restore, struct restore_file *file, int fd)
{
	const InetSkEntry *entry = file->entry->isk;
	struct inet_restore_file *inet = file->kind_data;
	bool came_back = inet->stream != NULL;
	int ret = 0;

	if (came_back)
		ret = tcp_stream_start(&restore->failure, fd, inet->stream);
	tcp_stream_free(inet->stream);
	inet->stream = NULL;
	if (!ret)
		ret = inet_options_restore(&restore->failure, fd, entry);
	if (!ret)
		ret = socket_options_restore(restore, fd, entry->opts);
	if (!ret)
		ret = udp_restore_multicast(restore, entry, fd);
	if (ret)
		return ret;
	if (came_back && entry->has_shutdown && entry->shutdown & SK_SHUTDOWN__READ)
		shutdown(fd, SHUT_RD);
	if (fcntl(fd, F_SETFL, (int)entry->flags))
		return fail_errno(&restore->failure, errno, "restore-inet", NULL, NULL, "cannot set the flags %#x",
				  entry->flags);
	return 0;
}

static int inet_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const InetSkEntry *entry = file->entry->isk;
	struct inet_restore_file *inet = file->kind_data;
	_cleanup_fd_ int fd = -1;
	int ret = open_socket(restore, entry, &fd);

	if (ret)
		return ret;
	if (!is_tcp(entry))
		ret = open_udp(restore, entry, fd);
	else if (comes_back_closed(restore, inet))
		close_both_ways(fd);
	else if (inet->is_connection)
		ret = open_connection(restore, inet, entry, &fd);
	else if (entry->state == TCP_STATE_LISTEN)
		ret = open_listener(restore, entry, fd);
	else
		ret = open_closed_tcp(restore, entry, fd);
	/* In flight in a queue, in no table: nobody calls the later stages. */
	if (!ret && !file->user_count)
		ret = inet_connect(restore, file, fd);
	if (!ret && !file->user_count)
		ret = inet_finish(restore, file, fd);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

static int inet_before_resume(struct restore *restore)
{
	tcp_restore_release(restore, (struct tcp_restore **)restore_kind_state(restore, &inet_kind));
	return 0;
}

const struct fd_kind inet_kind = {
	.name = "internet socket",
	.type = FD_TYPES__INETSK,
	.match = inet_match,
	.dump = inet_dump,
	.dump_finish = inet_dump_finish,
	.dump_release = inet_dump_release,
	.prepare = inet_prepare,
	.before_open = inet_before_open,
	.open = inet_open,
	.connect = inet_connect,
	.finish = inet_finish,
	.before_resume = inet_before_resume,
};
