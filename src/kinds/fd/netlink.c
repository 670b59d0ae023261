/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Netlink sockets.
 *
 * The kernel tells all of one through the socket itself: getsockname() the port, getpeername() the destination,
 * NETLINK_LIST_MEMBERSHIPS the groups. What it does not give is a queue that could be made again: messages come from
 * the kernel. Events that were sent to a group may be lost (the kernel itself drops them when nobody reads), answers
 * to a request may not: such a dump is refused.
 *
 * Libraries remember their port and compare it with that of answers, so it must be the same after a restore.
 */
#include "kinds/fd/fd_kind.h"

#include <linux/netlink.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/socket_options.h"

#include "sk-netlink.pb-c.h"

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

enum { STATE_UNCONNECTED, STATE_CONNECTED };

enum {
	MAX_PROTOCOL = 31,
	GROUP_BITS = 32,
	MAX_GROUP_WORDS = 2048 / GROUP_BITS, /* generic netlink has the most, some tens */
};

/* Options that are on or off and can be read back. */
static const int switches[] = {NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS,    NETLINK_LISTEN_ALL_NSID,
			       NETLINK_CAP_ACK, NETLINK_EXT_ACK,         NETLINK_GET_STRICT_CHK};

static bool netlink_match(const struct target_fd *target)
{
	int domain;
	socklen_t length = sizeof(domain);

	return S_ISSOCK(target->stat.st_mode) && !getsockopt(target->fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) &&
	       domain == AF_NETLINK;
}

static int check_queue(struct dump *dump, int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
	struct sockaddr_nl sender = {};
	struct nlmsghdr message;
	socklen_t length = sizeof(sender);

	if (poll(&poll_fd, 1, 0) <= 0)
		return 0;
	/* Looking at the queue would take the error away from the program. */
	if (poll_fd.revents & POLLERR)
		return fail(&dump->failure, EBUSY, "netlink-queue", NULL, "dump it when it has read its messages",
			    "the netlink socket has lost messages and not yet been told so");
	if (recvfrom(fd, &message, sizeof(message), MSG_PEEK | MSG_DONTWAIT, (struct sockaddr *)&sender, &length) < 0)
		return 0;
	if (!sender.nl_groups)
		return fail(&dump->failure, EBUSY, "netlink-queue", NULL, "dump it when it has read its answers",
			    "an answer of the kernel waits in the netlink socket");
	log_warn("events that wait in a netlink socket are not kept");
	return 0;
}

static int dump_groups(struct dump *dump, int fd, NetlinkSkEntry *entry)
{
	uint32_t words[MAX_GROUP_WORDS] = {};
	socklen_t length = sizeof(words);
	size_t count = 0;

	if (getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &length) < 0 || length > sizeof(words))
		return fail_errno(&dump->failure, errno ? errno : EOVERFLOW, "netlink-groups", NULL, NULL,
				  "cannot read the groups of the netlink socket");
	for (size_t i = 0; i < length / sizeof(words[0]); i++)
		if (words[i])
			count = i + 1;
	entry->n_groups = count;
	entry->groups = arena_memdup(&dump->arena, words, count * sizeof(words[0]));
	return 0;
}

static uint32_t read_switches(int fd)
{
	uint32_t mask = 0;

	for (size_t i = 0; i < ARRAY_SIZE(switches); i++) {
		int value = 0;
		socklen_t length = sizeof(value);
		if (!getsockopt(fd, SOL_NETLINK, switches[i], &value, &length) && value)
			mask |= 1u << switches[i];
	}
	return mask;
}

static int dump_addresses(struct dump *dump, int fd, NetlinkSkEntry *entry)
{
	struct sockaddr_nl name = {}, peer = {};
	socklen_t name_length = sizeof(name), peer_length = sizeof(peer), type_length = sizeof(int);
	int protocol, type;

	if (getsockname(fd, (struct sockaddr *)&name, &name_length) < 0 ||
	    getpeername(fd, (struct sockaddr *)&peer, &peer_length) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &type_length) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_length) < 0)
		return fail_errno(&dump->failure, errno, "netlink-address", NULL, NULL,
				  "cannot read the addresses of the netlink socket");
	entry->protocol = protocol;
	entry->portid = name.nl_pid;
	entry->dst_portid = peer.nl_pid;
	entry->dst_group = ffs(peer.nl_groups);
	entry->state = entry->dst_portid || entry->dst_group ? STATE_CONNECTED : STATE_UNCONNECTED;
	if (dump->options->format_plain)
		return 0;
	entry->has_type = type != SOCK_RAW;
	entry->type = type;
	entry->netlink_options = read_switches(fd);
	entry->has_netlink_options = entry->netlink_options;
	return 0;
}

static int netlink_dump(struct dump *dump, const struct target_fd *target, FileEntry *file_entry)
{
	NetlinkSkEntry *entry = arena_message(&dump->arena, NetlinkSkEntry, netlink_sk_entry);
	int error = check_queue(dump, target->fd);

	file_entry->nlsk = entry;
	entry->id = target->file->id;
	entry->ino = target->stat.st_ino;
	entry->flags = target->flags;
	entry->fown = target->fown;
	if (!error)
		error = dump_addresses(dump, target->fd, entry);
	if (!error)
		error = dump_groups(dump, target->fd, entry);
	if (!error)
		error = socket_options_dump(dump, target->fd, &entry->opts);
	return error;
}

/* ---- restore ---- */

static int netlink_prepare(struct restore *restore)
{
	for (size_t i = 0; i < restore->file_count; i++) {
		const NetlinkSkEntry *entry = restore->files[i]->entry->nlsk;
		if (restore->files[i]->entry->type != FD_TYPES__NETLINKSK)
			continue;
		if (!entry || entry->protocol > MAX_PROTOCOL || entry->n_groups > MAX_GROUP_WORDS ||
		    entry->dst_group > GROUP_BITS ||
		    (entry->has_type && entry->type != SOCK_RAW && entry->type != SOCK_DGRAM))
			return fail(&restore->failure, EINVAL, "image-netlink", NULL, NULL,
				    "files.img: netlink socket %u cannot exist", restore->files[i]->id);
	}
	return 0;
}

static int set_switches(struct restore *restore, int fd, const NetlinkSkEntry *entry)
{
	int on = 1;

	for (size_t i = 0; entry->has_netlink_options && i < ARRAY_SIZE(switches); i++)
		if (entry->netlink_options & 1u << switches[i] &&
		    setsockopt(fd, SOL_NETLINK, switches[i], &on, sizeof(on)) < 0)
			return fail_errno(&restore->failure, errno, "netlink-option", NULL, NULL,
					  "cannot turn on option %d of the netlink socket", switches[i]);
	return 0;
}

static int bind_port(struct restore *restore, int fd, const NetlinkSkEntry *entry)
{
	struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_pid = entry->portid};

	if (!entry->portid || !bind(fd, (struct sockaddr *)&name, sizeof(name)))
		return 0;
	return fail_errno(&restore->failure, errno, "netlink-port", NULL,
			  errno == EADDRINUSE ? "end the program that has it, or restore into its own network namespace"
					      : NULL,
			  "cannot bind a netlink socket of protocol %u to port %u", entry->protocol, entry->portid);
}

static int join_groups(struct restore *restore, int fd, const NetlinkSkEntry *entry)
{
	for (unsigned group = 1; group <= entry->n_groups * GROUP_BITS; group++) {
		if (!(entry->groups[(group - 1) / GROUP_BITS] & 1u << (group - 1) % GROUP_BITS))
			continue;
		if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0)
			return fail_errno(&restore->failure, errno, "netlink-groups", NULL, NULL,
					  "cannot join group %u of netlink protocol %u", group, entry->protocol);
	}
	return 0;
}

static int connect_port(struct restore *restore, int fd, const NetlinkSkEntry *entry)
{
	struct sockaddr_nl peer = {.nl_family = AF_NETLINK, .nl_pid = entry->dst_portid};

	if (!entry->dst_portid && !entry->dst_group)
		return 0;
	if (entry->dst_group)
		peer.nl_groups = 1u << (entry->dst_group - 1);
	if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)) < 0)
		return fail_errno(&restore->failure, errno, "netlink-connect", NULL, NULL,
				  "cannot connect a netlink socket to port %u, group %u", entry->dst_portid,
				  entry->dst_group);
	return 0;
}

static int netlink_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const NetlinkSkEntry *entry = file->entry->nlsk;
	_cleanup_fd_ int fd =
		socket(AF_NETLINK, (entry->has_type ? entry->type : SOCK_RAW) | SOCK_CLOEXEC, entry->protocol);

	if (fd < 0)
		return fail_errno(&restore->failure, errno, "netlink-socket", NULL, NULL,
				  "cannot make a netlink socket of protocol %u", entry->protocol);
	int error = set_switches(restore, fd, entry);
	if (!error)
		error = bind_port(restore, fd, entry);
	if (!error)
		error = join_groups(restore, fd, entry);
	if (!error)
		error = connect_port(restore, fd, entry);
	if (!error)
		error = socket_options_restore(restore, fd, entry->opts);
	if (!error)
		error = status_flags_restore(restore, fd, entry->flags);
	if (!error)
		*ret_fd = TAKE_FD(fd);
	return error;
}

const struct fd_kind netlink_kind = {
	.name = "netlink socket",
	.type = FD_TYPES__NETLINKSK,
	.match = netlink_match,
	.dump = netlink_dump,
	.prepare = netlink_prepare,
	.open = netlink_open,
};
