/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP sockets: unread datagrams and what is shut down.
 *
 * The queue is read with MSG_PEEK; SO_PEEK_OFF moves the place where the next peek begins (a datagram of no bytes that
 * has been peeked at before is passed over by the kernel: only a second dump of the same unread one misses it). What
 * the program's options let it see besides the sender (destination, interface, TTL, TOS) comes as control messages.
 *
 * Restore sends each datagram again with its old sender, as a packet of our own (ip_packet.h), to the address that the
 * program saw it come for, or one that reaches the socket when it cannot see it. Sockets may share a port, and others
 * may send to it: so the socket is filled while it has a port of its own, which it gives back (disconnecting a socket
 * whose port the kernel chose) before it is bound to the real one. Datagrams are sent one after the other; the socket's
 * memory tells that one has arrived. One that does not is lost with a warning, as UDP may.
 * A datagram that the program knows to be multicast or broadcast would reach others too: those are refused.
 *
 * Which half is closed: poll() shows the receiving one. The sending one is asked by a send from memory that does not
 * exist: it fails with EPIPE before, or with EFAULT after the kernel has looked at that.
 */
#include "kinds/fd/udp.h"

#include <arpa/inet.h>
#include <limits.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/udp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/ip_packet.h"

enum {
	MAX_DATAGRAM_BYTES = 65536,
	CONTROL_BYTES = 1024,
	ARRIVAL_TRIES = 1000,
	ARRIVAL_PAUSE_NS = 1000 * 1000,
	QUEUE_ROOM_BYTES = 64 << 20,
	DISCARD_PORT = 9,
};

union udp_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* ---- dump ---- */

static bool shutdown_is_read(int fd)
{
	struct pollfd event = {.fd = fd, .events = POLLRDHUP};

	return poll(&event, 1, 0) > 0 && event.revents & POLLRDHUP;
}

/* The address as packets have it: a mapped one is of IPv4. */
static const void *address_bytes(const union udp_address *address, size_t *ret_size)
{
	if (address->any.sa_family == AF_INET) {
		*ret_size = 4;
		return &address->v4.sin_addr;
	}
	*ret_size = 16;
	if (!IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr))
		return &address->v6.sin6_addr;
	*ret_size = 4;
	return (const uint8_t *)&address->v6.sin6_addr + 12;
}

static void set_bytes(struct arena *arena, ProtobufCBinaryData *bytes, const void *data, size_t size)
{
	bytes->data = arena_memdup(arena, data, size);
	bytes->len = size;
}

static bool refused_destination(const union udp_address *destination)
{
	size_t size;
	const uint8_t *bytes = address_bytes(destination, &size);

	return size == 16 ? bytes[0] == 0xff : bytes[0] >= 224;
}

static int refuse_destination(struct dump *dump)
{
	return fail(&dump->failure, EBUSY, "fd-udp-multicast-unread", NULL,
		    "dump again when the program has read its datagrams",
		    "a multicast or broadcast datagram waits to be read, which cannot be sent to this socket alone");
}

static void take_interface(struct dump *dump, InetDatagramEntry *entry, unsigned int ifindex)
{
	char name[IF_NAMESIZE];

	if (ifindex && if_indextoname(ifindex, name))
		entry->ifname = arena_strdup(&dump->arena, name);
}

static int take_destination4(struct dump *dump, const struct in_pktinfo *info, InetDatagramEntry *entry)
{
	/* They differ where the address is not one of this host alone. */
	if (info->ipi_addr.s_addr != info->ipi_spec_dst.s_addr)
		return refuse_destination(dump);
	entry->has_destination = true;
	set_bytes(&dump->arena, &entry->destination, &info->ipi_addr, 4);
	take_interface(dump, entry, info->ipi_ifindex);
	return 0;
}

static int take_destination6(struct dump *dump, const struct in6_pktinfo *info, InetDatagramEntry *entry)
{
	union udp_address address = {.v6 = {.sin6_family = AF_INET6, .sin6_addr = info->ipi6_addr}};
	size_t size;
	const void *bytes = address_bytes(&address, &size);

	if (refused_destination(&address))
		return refuse_destination(dump);
	entry->has_destination = true;
	set_bytes(&dump->arena, &entry->destination, bytes, size);
	take_interface(dump, entry, info->ipi6_ifindex);
	return 0;
}

static void take_number(protobuf_c_boolean *has, uint32_t *ret_number, const struct cmsghdr *part)
{
	int number = 0;

	/* IP_TOS comes as one byte, the others as int. */
	memcpy(&number, CMSG_DATA(part), part->cmsg_len < CMSG_LEN(sizeof(number)) ? 1 : sizeof(number));
	*has = true;
	*ret_number = number & 0xff;
}

static int take_control(struct dump *dump, struct msghdr *message, InetDatagramEntry *entry, int *ret_segment)
{
	int error = 0;

	*ret_segment = 0;
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part && !error; part = CMSG_NXTHDR(message, part)) {
		const void *data = CMSG_DATA(part);
		if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_PKTINFO)
			error = take_destination4(dump, data, entry);
		else if (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_PKTINFO)
			error = take_destination6(dump, data, entry);
		else if ((part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_TTL) ||
			 (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_HOPLIMIT))
			take_number(&entry->has_ttl, &entry->ttl, part);
		else if ((part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_TOS) ||
			 (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_TCLASS))
			take_number(&entry->has_tos, &entry->tos, part);
		else if (part->cmsg_level == IPPROTO_UDP && part->cmsg_type == UDP_GRO)
			memcpy(ret_segment, data, sizeof(*ret_segment));
	}
	return error;
}

static void add_datagram(struct dump *dump, InetSkEntry *entry, size_t *capacity, const InetDatagramEntry *datagram,
			 const char *data, size_t size)
{
	InetDatagramEntry *added = arena_memdup(&dump->arena, datagram, sizeof(*datagram));

	set_bytes(&dump->arena, &added->data, data, size);
	if (entry->n_queue == *capacity) {
		*capacity = *capacity ? *capacity * 2 : 16;
		InetDatagramEntry **grown = arena_alloc(&dump->arena, *capacity * sizeof(*grown));
		if (entry->n_queue)
			memcpy(grown, entry->queue, entry->n_queue * sizeof(*grown));
		entry->queue = grown;
	}
	entry->queue[entry->n_queue++] = added;
}

/* Peeks at the next datagram; with UDP_GRO several of one size may come as one. Returns 1, 0 at the end, a failure. */
static int dump_datagram(struct dump *dump, int fd, char *buffer, size_t *capacity, InetSkEntry *entry)
{
	char control[CONTROL_BYTES] __attribute__((aligned(8)));
	InetDatagramEntry datagram = INET_DATAGRAM_ENTRY__INIT;
	union udp_address source = {};
	struct iovec part = {buffer, MAX_DATAGRAM_BYTES};
	struct msghdr message = {.msg_name = &source,
				 .msg_namelen = sizeof(source),
				 .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	ssize_t length = recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT);
	size_t source_size;
	int segment;

	if (length < 0 && errno == EAGAIN)
		return 0;
	if (length < 0 || message.msg_flags & MSG_TRUNC || !message.msg_namelen)
		return fail_errno(&dump->failure, length < 0 ? errno : EPROTO, "fd-udp-queue", NULL, NULL,
				  "cannot look into the socket's queue");
	const void *bytes = address_bytes(&source, &source_size);
	set_bytes(&dump->arena, &datagram.source, bytes, source_size);
	datagram.source_port = ntohs(source.any.sa_family == AF_INET6 ? source.v6.sin6_port : source.v4.sin_port);
	int error = take_control(dump, &message, &datagram, &segment);
	if (error < 0)
		return error;
	size_t step = segment > 0 && segment < length ? segment : length;
	size_t at = 0;
	do {
		size_t size = length - at < step ? length - at : step;
		add_datagram(dump, entry, capacity, &datagram, buffer + at, size);
		at += size;
	} while (at < (size_t)length);
	return 1;
}

static bool bound_to_group(const InetSkEntry *entry)
{
	union udp_address address = {.any.sa_family = entry->family};

	if (entry->family == AF_INET6)
		memcpy(&address.v6.sin6_addr, entry->src_addr, 16);
	else
		memcpy(&address.v4.sin_addr, entry->src_addr, 4);
	return refused_destination(&address);
}

static bool is_readable(int fd)
{
	struct pollfd event = {.fd = fd, .events = POLLIN};
	int waiting = 0;

	if (poll(&event, 1, 0) <= 0 || !(event.revents & POLLIN))
		return false;
	/* The closed receiving half is readable as well; a datagram of no bytes counts as nothing. */
	return !shutdown_is_read(fd) || (!ioctl(fd, SIOCINQ, &waiting) && waiting > 0);
}

static int dump_queue(struct dump *dump, int fd, InetSkEntry *entry)
{
	int offset = -1, from_start = 0, found = 1;
	socklen_t size = sizeof(offset);
	size_t capacity = 0;

	if (!is_readable(fd))
		return 0;
	if (dump->options->format_plain) {
		log_warn("unread UDP datagrams on port %u are dropped: CRIU's format has no place for them",
			 entry->src_port);
		return 0;
	}
	if (bound_to_group(entry))
		return refuse_destination(dump);
	if (getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &size) ||
	    setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &from_start, sizeof(from_start)))
		return fail_errno(&dump->failure, errno, "fd-udp-queue", NULL, NULL,
				  "cannot look into the socket's queue");
	_cleanup_free_ char *buffer = xcalloc(1, MAX_DATAGRAM_BYTES);
	while (found > 0)
		found = dump_datagram(dump, fd, buffer, &capacity, entry);
	setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset));
	return found;
}

/* Sends nothing; see the top of the file. */
static bool sending_is_closed(int fd, const InetSkEntry *entry)
{
	union udp_address here = {.any.sa_family = entry->family};
	socklen_t size = entry->family == AF_INET6 ? sizeof(here.v6) : sizeof(here.v4);
	struct pollfd event = {.fd = fd};
	bool connected = entry->dst_port != 0;
	void *const nowhere = (void *)8;

	/* A socket without a port would get one; an error that waits would be taken from the program. */
	if (!entry->src_port || (poll(&event, 1, 0) > 0 && event.revents & POLLERR))
		return false;
	here.v4.sin_port = htons(DISCARD_PORT);
	if (entry->family == AF_INET6)
		here.v6.sin6_addr = in6addr_loopback;
	else
		here.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ssize_t sent =
		sendto(fd, nowhere, 1, MSG_DONTWAIT | MSG_NOSIGNAL, connected ? NULL : &here.any, connected ? 0 : size);
	return sent < 0 && errno == EPIPE;
}

int udp_dump(struct dump *dump, int fd, InetSkEntry *entry)
{
	bool closed_for_reading = shutdown_is_read(fd);
	int corked = 0, waiting = 0;
	socklen_t size = sizeof(corked);

	if (!getsockopt(fd, IPPROTO_UDP, UDP_CORK, &corked, &size) && corked && !ioctl(fd, SIOCOUTQ, &waiting) &&
	    waiting > 0)
		return fail(&dump->failure, EBUSY, "fd-udp-corked", NULL, "dump again in a moment",
			    "the program is just composing a UDP datagram (UDP_CORK), which cannot be read");
	int error = udp_dump_multicast(dump, fd, entry);
	if (!error && !dump->only_explain)
		error = dump_queue(dump, fd, entry);
	if (error < 0)
		return error;
	entry->shutdown =
		(closed_for_reading ? SK_SHUTDOWN__READ : 0) | (sending_is_closed(fd, entry) ? SK_SHUTDOWN__WRITE : 0);
	entry->has_shutdown = entry->shutdown != SK_SHUTDOWN__NONE;
	return 0;
}

/* ---- restore ---- */

static bool size_is_valid(size_t size)
{
	return size == 4 || size == 16;
}

const char *udp_wrong_part(const InetSkEntry *entry)
{
	for (size_t i = 0; i < entry->n_queue; i++) {
		const InetDatagramEntry *datagram = entry->queue[i];

		if (!size_is_valid(datagram->source.len) || datagram->source_port > UINT16_MAX ||
		    datagram->data.len > MAX_DATAGRAM_BYTES || datagram->ttl > UINT8_MAX || datagram->tos > UINT8_MAX ||
		    (datagram->has_destination && datagram->destination.len != datagram->source.len))
			return "queue";
	}
	return udp_wrong_membership(entry);
}

static void to_address(const void *bytes, size_t size, unsigned int port, int ifindex, union udp_address *ret_address)
{
	memset(ret_address, 0, sizeof(*ret_address));
	ret_address->any.sa_family = size == 16 ? AF_INET6 : AF_INET;
	ret_address->v4.sin_port = htons(port);
	if (size == 4) {
		memcpy(&ret_address->v4.sin_addr, bytes, size);
		return;
	}
	memcpy(&ret_address->v6.sin6_addr, bytes, size);
	if (IN6_IS_ADDR_LINKLOCAL(&ret_address->v6.sin6_addr))
		ret_address->v6.sin6_scope_id = ifindex;
}

static socklen_t address_size(const union udp_address *address)
{
	return address->any.sa_family == AF_INET6 ? sizeof(address->v6) : sizeof(address->v4);
}

/* An address of this host, so that the packet stays here. */
static bool is_local(const union udp_address *address)
{
	union udp_address any_port = *address;
	_cleanup_fd_ int fd = socket(address->any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	any_port.v4.sin_port = 0;
	return !refused_destination(address) && fd >= 0 && !bind(fd, &any_port.any, address_size(address));
}

/* Where the datagram has to go to reach the socket, which is bound to @own: of its sender's family. */
static void choose_destination(const InetDatagramEntry *datagram, const union udp_address *own, int ifindex,
			       union udp_address *ret_address)
{
	static const uint8_t nowhere[16];
	const struct in_addr loopback4 = {htonl(INADDR_LOOPBACK)};
	size_t size = datagram->source.len, own_size;
	const void *own_bytes = address_bytes(own, &own_size);

	if (datagram->has_destination)
		to_address(datagram->destination.data, size, 0, ifindex, ret_address);
	else if (own_size == size && memcmp(own_bytes, nowhere, size) != 0)
		to_address(own_bytes, size, 0, ifindex, ret_address);
	else if (size == 4)
		to_address(&loopback4, size, 0, 0, ret_address);
	else
		to_address(&in6addr_loopback, size, 0, 0, ret_address);
}

static uint32_t queue_memory_bytes(int fd)
{
	uint32_t memory[SK_MEMINFO_VARS] = {};
	socklen_t size = sizeof(memory);

	getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size);
	return memory[SK_MEMINFO_RMEM_ALLOC];
}

static bool wait_arrival(int fd, uint32_t before)
{
	const struct timespec pause = {.tv_nsec = ARRIVAL_PAUSE_NS};

	for (int tries = 0; tries < ARRIVAL_TRIES; tries++) {
		if (queue_memory_bytes(fd) != before)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

static int deliver(const InetSkEntry *entry, const InetDatagramEntry *datagram, int fd, const union udp_address *own)
{
	const char *ifname = datagram->ifname ? datagram->ifname : entry->opts->so_bound_dev;
	size_t payload_size = sizeof(struct udphdr) + datagram->data.len, size;
	_cleanup_free_ struct udphdr *header = xcalloc(1, payload_size);
	union udp_address destination;
	struct ip_packet packet = {
		.protocol = entry->proto,
		.ttl = datagram->ttl,
		.tos = datagram->tos,
		.ifindex = ifname ? (int)if_nametoindex(ifname) : 0,
		.payload = header,
		.payload_size = payload_size,
		.checksum_offset = offsetof(struct udphdr, check),
	};

	choose_destination(datagram, own, packet.ifindex, &destination);
	if (!is_local(&destination))
		return -EADDRNOTAVAIL;
	packet.family = destination.any.sa_family;
	const void *bytes = address_bytes(&destination, &size);
	memcpy(packet.destination, bytes, size);
	memcpy(packet.source, datagram->source.data, datagram->source.len);
	header->source = htons(datagram->source_port);
	header->dest = own->v4.sin_port;
	header->len = htons(payload_size);
	if (datagram->data.len)
		memcpy(header + 1, datagram->data.data, datagram->data.len);
	uint32_t before = queue_memory_bytes(fd);
	int error = ip_packet_deliver(&packet);
	if (error < 0)
		return error;
	return wait_arrival(fd, before) ? 0 : -ETIMEDOUT;
}

/* The address that the socket will have, with a port that the kernel chooses. */
static int bind_for_filling(const InetSkEntry *entry, int fd, union udp_address *ret_own)
{
	int ifindex = entry->ifname ? (int)if_nametoindex(entry->ifname) : 0;
	socklen_t size = sizeof(*ret_own);
	union udp_address own;

	to_address(entry->src_addr, entry->family == AF_INET6 ? 16 : 4, 0, ifindex, &own);
	if (bind(fd, &own.any, address_size(&own)) || getsockname(fd, &ret_own->any, &size))
		return -errno;
	return 0;
}

void udp_fill_queue(const InetSkEntry *entry, int fd)
{
	const struct sockaddr nobody = {.sa_family = AF_UNSPEC};
	union udp_address own;
	int room = QUEUE_ROOM_BYTES;

	if (!entry->n_queue)
		return;
	/* The size that it had is set with the other options. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	int error = bind_for_filling(entry, fd, &own);
	for (size_t i = 0; i < entry->n_queue; i++) {
		int lost = error ? error : deliver(entry, entry->queue[i], fd, &own);
		if (lost)
			log_warn("UDP port %u: an unread datagram of %zu bytes is lost: %s", entry->src_port,
				 entry->queue[i]->data.len, strerror(-lost));
	}
	connect(fd, &nobody, sizeof(nobody));
}
