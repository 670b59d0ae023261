/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/address.h"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "kinds/fd/nft_session.h"

enum { REPLY_BYTES = 16384, ANNOUNCEMENTS = 2, HARDWARE_BYTES = 6 };

struct address_block {
	struct nft_session *session;
	char table[32 + INET6_ADDRSTRLEN]; /* of its own: a table with an owner is one session's alone */
};

static size_t address_bytes(const struct moving_address *address)
{
	return address->family == AF_INET ? 4 : ADDRESS_BYTES;
}

static int fail_text(struct failure *failure, const char *text)
{
	return fail(failure, EINVAL, "address", text, "write it like 10.0.0.5/24@eth0 or 2001:db8::5/64@eth0",
		    "this is no address with prefix length and interface");
}

int address_parse(struct failure *failure, const char *text, struct moving_address *ret_address)
{
	struct moving_address address = {.family = strchr(text, ':') ? AF_INET6 : AF_INET};
	_cleanup_free_ char *copy = xstrdup(text);
	char *at = strchr(copy, '@'), *slash = strchr(copy, '/'), *end;

	if (!at || !slash || slash > at || strlen(at + 1) >= sizeof(address.interface) || !at[1])
		return fail_text(failure, text);
	*at = *slash = '\0';
	unsigned long prefix = strtoul(slash + 1, &end, 10);
	if (*end || end == slash + 1 || inet_pton(address.family, copy, address.address) != 1 ||
	    prefix > 8 * address_bytes(&address))
		return fail_text(failure, text);
	address.prefix_length = prefix;
	strcpy(address.interface, at + 1);
	*ret_address = address;
	return 0;
}

char *address_text(const struct moving_address *address, char *buffer)
{
	char text[INET6_ADDRSTRLEN];

	inet_ntop(address->family, address->address, text, sizeof(text));
	snprintf(buffer, ADDRESS_TEXT_BYTES, "%s/%u@%s", text, address->prefix_length, address->interface);
	return buffer;
}

static int fail_address(struct failure *failure, int error, const struct moving_address *address, const char *what)
{
	char text[ADDRESS_TEXT_BYTES];

	return fail_errno(failure, error, "address", address_text(address, text),
			  error == EPERM || error == -EPERM ? "run criu as root" : NULL, "%s", what);
}

/* ---- rtnetlink ---- */

static int open_route_socket(struct mnl_socket **ret_socket)
{
	struct mnl_socket *socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);

	if (!socket || mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0) {
		int error = -errno;
		if (socket)
			mnl_socket_close(socket);
		return error;
	}
	*ret_socket = socket;
	return 0;
}

static int exchange(struct nlmsghdr *message, mnl_cb_t callback, void *context)
{
	_cleanup_free_ char *reply = xcalloc(1, REPLY_BYTES);
	struct mnl_socket *socket;
	int result = open_route_socket(&socket);

	if (result < 0)
		return result;
	message->nlmsg_seq = 1;
	if (mnl_socket_sendto(socket, message, message->nlmsg_len) < 0)
		result = -errno;
	else
		do {
			ssize_t count = mnl_socket_recvfrom(socket, reply, REPLY_BYTES);
			result = count < 0 ? -errno
					   : mnl_cb_run(reply, count, 1, mnl_socket_get_portid(socket), callback,
							context);
			if (count >= 0 && result < 0)
				result = -errno;
		} while (result > 0);
	mnl_socket_close(socket);
	return result;
}

static int change_address(const struct moving_address *address, uint16_t type, uint16_t flags)
{
	char buffer[256];
	struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);
	unsigned index = if_nametoindex(address->interface);

	if (!index)
		return -errno;
	message->nlmsg_type = type;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	struct ifaddrmsg *body = mnl_nlmsg_put_extra_header(message, sizeof(*body));
	body->ifa_family = address->family;
	body->ifa_prefixlen = address->prefix_length;
	body->ifa_flags = IFA_F_NODAD;
	body->ifa_scope = RT_SCOPE_UNIVERSE;
	body->ifa_index = index;
	mnl_attr_put(message, IFA_LOCAL, address_bytes(address), address->address);
	mnl_attr_put(message, IFA_ADDRESS, address_bytes(address), address->address);
	if (address->family == AF_INET && address->prefix_length < 31) {
		struct in_addr broadcast;
		memcpy(&broadcast, address->address, sizeof(broadcast));
		broadcast.s_addr |= htonl(UINT32_MAX >> address->prefix_length);
		mnl_attr_put(message, IFA_BROADCAST, sizeof(broadcast), &broadcast);
	}
	return exchange(message, NULL, NULL);
}

int address_add(struct failure *failure, const struct moving_address *address)
{
	int error = change_address(address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);

	return error < 0 && error != -EEXIST ? fail_address(failure, error, address, "cannot add it") : 0;
}

int address_remove(struct failure *failure, const struct moving_address *address)
{
	int error = change_address(address, RTM_DELADDR, 0);

	return error < 0 && error != -EADDRNOTAVAIL ? fail_address(failure, error, address, "cannot remove it") : 0;
}

struct look_up {
	const struct moving_address *address;
	unsigned index;
	bool found;
	uint8_t prefix_length;
};

static int compare_address(const struct nlmsghdr *message, void *context)
{
	struct look_up *look_up = context;
	const struct ifaddrmsg *body = mnl_nlmsg_get_payload(message);
	const struct nlattr *attribute;
	size_t bytes = address_bytes(look_up->address);

	if (body->ifa_family != look_up->address->family || body->ifa_index != look_up->index)
		return MNL_CB_OK;
	mnl_attr_for_each(attribute, message, sizeof(*body))
	{
		uint16_t type = mnl_attr_get_type(attribute);
		if ((type == IFA_LOCAL || (type == IFA_ADDRESS && body->ifa_family == AF_INET6)) &&
		    mnl_attr_get_payload_len(attribute) == bytes &&
		    !memcmp(mnl_attr_get_payload(attribute), look_up->address->address, bytes))
			look_up->found = true;
	}
	if (look_up->found && !look_up->prefix_length)
		look_up->prefix_length = body->ifa_prefixlen;
	return MNL_CB_OK;
}

int address_look_up(struct failure *failure, const struct moving_address *address, bool *ret_interface, bool *ret_has,
		    uint8_t *ret_prefix_length)
{
	struct look_up look_up = {.address = address, .index = if_nametoindex(address->interface)};
	char buffer[256];
	struct nlmsghdr *message = mnl_nlmsg_put_header(buffer);

	message->nlmsg_type = RTM_GETADDR;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	struct ifaddrmsg *body = mnl_nlmsg_put_extra_header(message, sizeof(*body));
	body->ifa_family = address->family;
	int error = look_up.index ? exchange(message, compare_address, &look_up) : 0;
	if (error < 0)
		return fail_address(failure, error, address, "cannot list the addresses of this machine");
	*ret_interface = look_up.index != 0;
	*ret_has = look_up.found;
	*ret_prefix_length = look_up.prefix_length;
	return 0;
}

static int check_own(struct failure *failure, const struct moving_address *address)
{
	char text[ADDRESS_TEXT_BYTES];
	bool interface, has;
	uint8_t prefix_length;
	int error = address_look_up(failure, address, &interface, &has, &prefix_length);

	if (error < 0)
		return error;
	address_text(address, text);
	if (!interface)
		return fail(failure, ENODEV, "address-interface", text, "see `ip address`",
			    "this machine has no interface %s", address->interface);
	if (!has)
		return fail(failure, EADDRNOTAVAIL, "address-missing", text, "see `ip address`",
			    "this machine does not have this address, so it cannot move");
	/* Removed with another one it would stay, and be on both machines. */
	return prefix_length == address->prefix_length
		       ? 0
		       : fail(failure, EADDRNOTAVAIL, "address-missing", text, "write it as `ip address` does",
			      "this machine has the address with the prefix length %u", prefix_length);
}

int addresses_check(struct failure *failure, const struct moving_address *addresses, size_t count)
{
	char text[ADDRESS_TEXT_BYTES];
	int error = 0;

	for (size_t i = 0; i < count && !error; i++) {
		error = check_own(failure, &addresses[i]);
		for (size_t other = 0; other < i && !error; other++)
			if (addresses[other].family == addresses[i].family &&
			    !memcmp(addresses[other].address, addresses[i].address, ADDRESS_BYTES))
				error = fail(failure, EINVAL, "address", address_text(&addresses[i], text),
					     "leave one out", "it is given twice");
	}
	return error;
}

/* ---- telling the neighbours ---- */

struct link {
	int index;
	uint8_t hardware[HARDWARE_BYTES];
};

/* Links without hardware addresses (lo, tunnels) have no neighbours to tell. Returns 1 if this one has. */
static int read_link(int fd, const struct moving_address *address, struct link *ret_link)
{
	struct ifreq request = {};

	memcpy(request.ifr_name, address->interface, sizeof(address->interface));
	if (ioctl(fd, SIOCGIFINDEX, &request) < 0)
		return -errno;
	ret_link->index = request.ifr_ifindex;
	if (ioctl(fd, SIOCGIFHWADDR, &request) < 0)
		return -errno;
	memcpy(ret_link->hardware, request.ifr_hwaddr.sa_data, HARDWARE_BYTES);
	return request.ifr_hwaddr.sa_family == ARPHRD_ETHER;
}

static int send_frame(int fd, const struct link *link, const void *frame, size_t size)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = link->index, .sll_halen = HARDWARE_BYTES};

	memcpy(to.sll_addr, frame, HARDWARE_BYTES);
	return sendto(fd, frame, size, 0, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
}

/* A request for the own address from the own address (RFC 5227): caches that have it are renewed. */
static int send_arp(int fd, const struct moving_address *address, const struct link *link)
{
	struct {
		struct ether_header ethernet;
		struct ether_arp arp;
	} __attribute__((packed)) frame = {};

	memset(frame.ethernet.ether_dhost, 0xff, HARDWARE_BYTES);
	memcpy(frame.ethernet.ether_shost, link->hardware, HARDWARE_BYTES);
	frame.ethernet.ether_type = htons(ETHERTYPE_ARP);
	frame.arp.ea_hdr = (struct arphdr){.ar_hrd = htons(ARPHRD_ETHER),
					   .ar_pro = htons(ETHERTYPE_IP),
					   .ar_hln = HARDWARE_BYTES,
					   .ar_pln = 4,
					   .ar_op = htons(ARPOP_REQUEST)};
	memcpy(frame.arp.arp_sha, link->hardware, HARDWARE_BYTES);
	memcpy(frame.arp.arp_spa, address->address, 4);
	memcpy(frame.arp.arp_tpa, address->address, 4);
	return send_frame(fd, link, &frame, sizeof(frame));
}

/* To all nodes, with the override flag (RFC 4861, 7.2.6). The kernel fills in source address and checksum. */
static int send_advertisement(int fd, const struct moving_address *address, const struct link *link)
{
	struct {
		struct nd_neighbor_advert advert;
		struct nd_opt_hdr option;
		uint8_t hardware[HARDWARE_BYTES];
	} __attribute__((packed)) packet = {
		.advert.nd_na_type = ND_NEIGHBOR_ADVERT,
		.advert.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE,
		.option = {.nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1},
	};
	struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_scope_id = link->index};
	struct sockaddr_in6 from = {.sin6_family = AF_INET6, .sin6_scope_id = link->index};
	int hops = 255;

	memcpy(&packet.advert.nd_na_target, address->address, ADDRESS_BYTES);
	memcpy(packet.hardware, link->hardware, HARDWARE_BYTES);
	inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
	memcpy(&from.sin6_addr, address->address, ADDRESS_BYTES);
	if (setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof(hops)) < 0 ||
	    bind(fd, (struct sockaddr *)&from, sizeof(from)) < 0)
		return -errno;
	return sendto(fd, &packet, sizeof(packet), 0, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
}

static void *close_fd(void *argument)
{
	close((int)(intptr_t)argument);
	return NULL;
}

/* Who closes a packet socket waits for all processors (RCU), some 10 ms, and a tree waits for who announces. */
static void close_in_background(int fd)
{
	pthread_t thread;

	if (fd < 0)
		return;
	if (pthread_create(&thread, NULL, close_fd, (void *)(intptr_t)fd))
		close(fd);
	else
		pthread_detach(thread);
}

int address_announce(struct failure *failure, const struct moving_address *address)
{
	bool ipv4 = address->family == AF_INET;
	int fd = ipv4 ? socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
		      : socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6);
	struct link link;
	int result = fd < 0 ? -errno : read_link(fd, address, &link);

	for (int i = 0; i < ANNOUNCEMENTS && result > 0; i++) {
		int error = ipv4 ? send_arp(fd, address, &link) : send_advertisement(fd, address, &link);
		if (error < 0)
			result = error;
	}
	close_in_background(fd);
	return result < 0 ? fail_address(failure, result, address, "cannot tell the neighbours where it is") : 0;
}

/* ---- silence ---- */

/* "criu-address-PID-ADDRESS"; names have no colons. */
static void name_table(struct address_block *block, const char *address)
{
	snprintf(block->table, sizeof(block->table), "criu-address-%d-%s", getpid(), address);
	for (char *colon = block->table; (colon = strchr(colon, ':'));)
		*colon = '-';
}

int address_block(struct failure *failure, const struct moving_address *address, struct address_block **ret_block)
{
	struct address_block *block = xcalloc(1, sizeof(*block));
	const char *family = address->family == AF_INET ? "ip" : "ip6";
	char text[INET6_ADDRSTRLEN];

	inet_ntop(address->family, address->address, text, sizeof(text));
	name_table(block, text);
	const char *table = block->table;
	_cleanup_free_ char *commands = xasprintf("add table inet %s { flags owner; }\n"
						  "add chain inet %s in { type filter hook input priority -350; }\n"
						  "add chain inet %s out { type filter hook output priority -350; }\n"
						  "add rule inet %s in %s daddr %s meta l4proto { tcp, udp } drop\n"
						  "add rule inet %s out %s saddr %s meta l4proto { tcp, udp } drop\n",
						  table, table, table, table, family, text, table, family, text);
	int error = nft_session_open(failure, -1, &block->session);
	if (!error) {
		error = nft_session_run(block->session, commands, false);
		if (error < 0)
			fail(failure, error, "address-block", text, "the kernel needs nf_tables",
			     "cannot hold back its packets: %s", nft_session_error(block->session));
	}
	if (error < 0) {
		address_unblock(block);
		return error;
	}
	*ret_block = block;
	return 0;
}

void address_unblock(struct address_block *block)
{
	char command[sizeof(block->table) + 32];

	if (!block)
		return;
	/* Removing what hooks into the network takes its time; rules do not. The table goes with its session. */
	snprintf(command, sizeof(command), "flush table inet %s", block->table);
	if (block->session && !nft_session_run(block->session, command, false))
		nft_session_leave(TAKE_POINTER(block->session));
	nft_session_close(block->session);
	free(block);
}
