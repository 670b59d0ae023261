/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Multicast groups of UDP sockets.
 *
 * No call lists the groups of a socket. /proc/net/igmp and igmp6 list all groups that anybody has joined on each
 * interface, and a socket tells the filter of one group on one interface, or that it has not joined it: so each is
 * asked for. The interface that multicast is sent from is known by its index in IPv6 and by its address in IPv4; one
 * that was chosen by its index alone cannot be read there.
 */
#include "kinds/fd/udp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"

enum { FIRST_SOURCES = 16, MAX_SOURCES = 65536, IPV6_TEXT_BYTES = 32 };

struct group {
	unsigned int ifindex;
	size_t size; /* of the address: 4 or 16 */
	uint8_t address[16];
};

static int level_of(size_t address_size)
{
	return address_size == 16 ? IPPROTO_IPV6 : IPPROTO_IP;
}

static void set_address(struct sockaddr_storage *storage, const void *address, size_t size)
{
	memset(storage, 0, sizeof(*storage));
	storage->ss_family = size == 16 ? AF_INET6 : AF_INET;
	if (size == 16)
		memcpy(&((struct sockaddr_in6 *)storage)->sin6_addr, address, size);
	else
		memcpy(&((struct sockaddr_in *)storage)->sin_addr, address, size);
}

static const void *address_of(const struct sockaddr_storage *storage)
{
	return storage->ss_family == AF_INET6 ? (const void *)&((const struct sockaddr_in6 *)storage)->sin6_addr
					      : (const void *)&((const struct sockaddr_in *)storage)->sin_addr;
}

/* ---- dump ---- */

static int fail_membership(struct dump *dump, int error)
{
	return fail_errno(&dump->failure, error, "fd-udp-multicast", NULL, NULL,
			  "cannot read the multicast groups of a UDP socket");
}

static InetMembershipEntry *new_membership(struct dump *dump, const struct group *group,
					   const struct group_filter *filter)
{
	InetMembershipEntry *entry = arena_message(&dump->arena, InetMembershipEntry, inet_membership_entry);
	char name[IF_NAMESIZE];

	if (!if_indextoname(group->ifindex, name))
		return NULL;
	entry->ifname = arena_strdup(&dump->arena, name);
	entry->group.data = arena_memdup(&dump->arena, group->address, group->size);
	entry->group.len = group->size;
	entry->mode = filter->gf_fmode;
	entry->n_sources = filter->gf_numsrc;
	entry->sources = arena_alloc(&dump->arena, filter->gf_numsrc * sizeof(*entry->sources));
	for (size_t i = 0; i < filter->gf_numsrc; i++) {
		entry->sources[i].data = arena_memdup(&dump->arena, address_of(&filter->gf_slist[i]), group->size);
		entry->sources[i].len = group->size;
	}
	return entry;
}

/* Asks for one group; with more room if it has more sources. */
static int dump_group(struct dump *dump, int fd, const struct group *group, InetSkEntry *entry)
{
	_cleanup_free_ struct group_filter *filter = NULL;
	uint32_t room = FIRST_SOURCES;

	for (;;) {
		socklen_t size = GROUP_FILTER_SIZE(room);
		free(filter);
		filter = xcalloc(1, size);
		filter->gf_interface = group->ifindex;
		filter->gf_numsrc = room;
		set_address(&filter->gf_group, group->address, group->size);
		if (getsockopt(fd, level_of(group->size), MCAST_MSFILTER, filter, &size))
			return errno == EADDRNOTAVAIL ? 0 : fail_membership(dump, errno);
		if (filter->gf_numsrc <= room)
			break;
		if (filter->gf_numsrc > MAX_SOURCES)
			return fail_membership(dump, E2BIG);
		room = filter->gf_numsrc;
	}
	InetMembershipEntry *membership = new_membership(dump, group, filter);
	if (!membership)
		return fail_membership(dump, ENODEV);
	InetMembershipEntry **all = arena_alloc(&dump->arena, (entry->n_memberships + 1) * sizeof(*entry->memberships));
	if (entry->n_memberships)
		memcpy(all, entry->memberships, entry->n_memberships * sizeof(*all));
	all[entry->n_memberships++] = membership;
	entry->memberships = all;
	return 0;
}

/* "INDEX<tab>NAME ..." begins an interface, "<tabs>GROUP ..." is one of its groups. */
static bool parse_line4(const char *line, struct group *group)
{
	uint32_t address;

	if (line[0] >= '0' && line[0] <= '9') {
		group->ifindex = strtoul(line, NULL, 10);
		return false;
	}
	group->size = 4;
	if (sscanf(line, " %8x", &address) != 1 || line[0] != '\t')
		return false;
	memcpy(group->address, &address, sizeof(address));
	return true;
}

/* "INDEX NAME GROUP USERS ..." */
static bool parse_line6(const char *line, struct group *group)
{
	char text[IPV6_TEXT_BYTES + 1];

	group->size = 16;
	if (sscanf(line, "%u %*s %32s", &group->ifindex, text) != 2 || strlen(text) != IPV6_TEXT_BYTES)
		return false;
	for (size_t i = 0; i < group->size; i++)
		if (sscanf(text + 2 * i, "%2hhx", &group->address[i]) != 1)
			return false;
	return true;
}

static int dump_groups(struct dump *dump, int fd, const char *path,
		       bool (*parse)(const char *line, struct group *group), InetSkEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	struct group group = {};
	char *rest;
	int error = read_text_at(AT_FDCWD, path, &text, NULL);

	/* A kernel without the protocol. */
	if (error == -ENOENT)
		return 0;
	if (error < 0)
		return fail_errno(&dump->failure, error, "fd-udp-multicast", path, NULL, "cannot read it");
	for (char *line = strtok_r(text, "\n", &rest); line && !error; line = strtok_r(NULL, "\n", &rest))
		if (parse(line, &group))
			error = dump_group(dump, fd, &group, entry);
	return error;
}

/* Where multicast is sent from. */
static void dump_sender(struct dump *dump, int fd, InetSkEntry *entry)
{
	struct in_addr address = {};
	socklen_t size = sizeof(address);
	int ifindex = 0;
	char name[IF_NAMESIZE];

	if (!getsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &address, &size) && address.s_addr) {
		entry->has_multicast_address = true;
		entry->multicast_address.data = arena_memdup(&dump->arena, &address, sizeof(address));
		entry->multicast_address.len = sizeof(address);
	}
	size = sizeof(ifindex);
	if (entry->family == AF_INET6 && !getsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &ifindex, &size) && ifindex &&
	    if_indextoname(ifindex, name))
		entry->multicast_ifname = arena_strdup(&dump->arena, name);
}

int udp_dump_multicast(struct dump *dump, int fd, InetSkEntry *entry)
{
	int error = dump_groups(dump, fd, "/proc/net/igmp", parse_line4, entry);

	if (!error && entry->family == AF_INET6)
		error = dump_groups(dump, fd, "/proc/net/igmp6", parse_line6, entry);
	if (error < 0)
		return error;
	if (entry->n_memberships && dump->options->format_plain)
		return fail(&dump->failure, EOPNOTSUPP, "fd-udp-multicast", NULL, "leave out --format criu",
			    "the UDP socket has joined multicast groups, which CRIU's format cannot say");
	if (!dump->options->format_plain)
		dump_sender(dump, fd, entry);
	return 0;
}

/* ---- restore ---- */

static bool size_is_valid(size_t size)
{
	return size == 4 || size == 16;
}

const char *udp_wrong_membership(const InetSkEntry *entry)
{
	for (size_t i = 0; i < entry->n_memberships; i++) {
		const InetMembershipEntry *membership = entry->memberships[i];

		if (!size_is_valid(membership->group.len) || membership->mode > 1 ||
		    membership->n_sources > MAX_SOURCES)
			return "memberships";
		for (size_t k = 0; k < membership->n_sources; k++)
			if (membership->sources[k].len != membership->group.len)
				return "memberships";
	}
	if (entry->has_multicast_address && entry->multicast_address.len != sizeof(struct in_addr))
		return "multicast_address";
	return NULL;
}

static int set_filter(int fd, const InetMembershipEntry *entry, unsigned int ifindex)
{
	size_t size = GROUP_FILTER_SIZE(entry->n_sources);
	_cleanup_free_ struct group_filter *filter = xcalloc(1, size);

	filter->gf_interface = ifindex;
	filter->gf_fmode = entry->mode;
	filter->gf_numsrc = entry->n_sources;
	set_address(&filter->gf_group, entry->group.data, entry->group.len);
	for (size_t i = 0; i < entry->n_sources; i++)
		set_address(&filter->gf_slist[i], entry->sources[i].data, entry->sources[i].len);
	return setsockopt(fd, level_of(entry->group.len), MCAST_MSFILTER, filter, size) ? -errno : 0;
}

static int join(struct restore *restore, int fd, const InetMembershipEntry *entry)
{
	struct group_req request = {.gr_interface = if_nametoindex(entry->ifname)};
	char text[INET6_ADDRSTRLEN];
	int error = request.gr_interface ? 0 : -ENODEV;

	set_address(&request.gr_group, entry->group.data, entry->group.len);
	if (!error && setsockopt(fd, level_of(entry->group.len), MCAST_JOIN_GROUP, &request, sizeof(request)))
		error = -errno;
	if (!error && (entry->mode != MCAST_EXCLUDE || entry->n_sources))
		error = set_filter(fd, entry, request.gr_interface);
	if (!error)
		return 0;
	inet_ntop(request.gr_group.ss_family, entry->group.data, text, sizeof(text));
	return fail_errno(&restore->failure, error, "restore-multicast", NULL,
			  error == -ENODEV ? "give this host an interface of that name" : NULL,
			  "a UDP socket cannot join the multicast group %s on %.32s", text, entry->ifname);
}

int udp_restore_multicast(struct restore *restore, const InetSkEntry *entry, int fd)
{
	int error = 0;

	for (size_t i = 0; i < entry->n_memberships && !error; i++)
		error = join(restore, fd, entry->memberships[i]);
	if (error < 0)
		return error;
	int ifindex = entry->multicast_ifname ? (int)if_nametoindex(entry->multicast_ifname) : 0;
	if (entry->has_multicast_address &&
	    setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, entry->multicast_address.data, entry->multicast_address.len))
		error = -errno;
	if (!error && entry->multicast_ifname &&
	    (!ifindex || setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &ifindex, sizeof(ifindex))))
		error = ifindex ? -errno : -ENODEV;
	return error ? fail_errno(&restore->failure, error, "restore-multicast", NULL,
				  "give this host the interface that the socket used",
				  "a UDP socket cannot choose where multicast is sent from")
		     : 0;
}
