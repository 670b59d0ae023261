/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A raw socket sends whole packets with any source address: sent to a local address, a packet goes through the
 * loopback device and reaches the socket like one from the network. A raw socket that is bound to an interface lets
 * the receiver believe that it came from there. The kernel fills in the IP header's checksum and length; the checksum
 * of the protocol is ours.
 */
#include "kinds/fd/ip_packet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/fd.h"
#include "kinds/fd/network_lock.h"

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62
#endif

enum { DEFAULT_TTL = 64 };

/* The Internet checksum's sum over @size bytes, not folded. */
static uint32_t checksum_add(uint32_t sum, const void *data, size_t size)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i + 1 < size; i += 2)
		sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
	return size % 2 ? sum + ((uint32_t)bytes[size - 1] << 8) : sum;
}

static uint16_t checksum_fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static void fill_checksum(const struct ip_packet *packet)
{
	size_t address_size = packet->family == AF_INET6 ? 16 : 4;
	uint32_t sum = packet->protocol + packet->payload_size; /* the pseudo header's */
	uint8_t *place = (uint8_t *)packet->payload + packet->checksum_offset;
	uint16_t checksum = 0;

	memcpy(place, &checksum, sizeof(checksum));
	sum = checksum_add(sum, packet->source, address_size);
	sum = checksum_add(sum, packet->destination, address_size);
	sum = checksum_add(sum, packet->payload, packet->payload_size);
	checksum = checksum_fold(sum);
	/* Zero would say that there is none. */
	checksum = checksum ? checksum : 0xffff;
	memcpy(place, &checksum, sizeof(checksum));
}

static int send_packet4(int fd, const struct ip_packet *packet)
{
	struct iphdr header = {
		.version = 4,
		.ihl = sizeof(header) / 4,
		.ttl = packet->ttl ? packet->ttl : DEFAULT_TTL,
		.tos = packet->tos,
		.protocol = packet->protocol,
		.tot_len = htons((uint16_t)(sizeof(header) + packet->payload_size)),
		.saddr = packet->source[0],
		.daddr = packet->destination[0],
	};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {packet->destination[0]}};
	struct iovec parts[] = {{&header, sizeof(header)}, {packet->payload, packet->payload_size}};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = parts, .msg_iovlen = 2};

	return sendmsg(fd, &message, 0) < 0 ? -errno : 0;
}

static int send_packet6(int fd, const struct ip_packet *packet)
{
	struct ip6_hdr header = {
		.ip6_flow = htonl(6u << 28 | (uint32_t)packet->tos << 20),
		.ip6_plen = htons((uint16_t)packet->payload_size),
		.ip6_nxt = packet->protocol,
		.ip6_hlim = packet->ttl ? packet->ttl : DEFAULT_TTL,
	};
	struct sockaddr_in6 to = {.sin6_family = AF_INET6};
	struct iovec parts[] = {{&header, sizeof(header)}, {packet->payload, packet->payload_size}};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = parts, .msg_iovlen = 2};

	memcpy(&header.ip6_src, packet->source, 16);
	memcpy(&header.ip6_dst, packet->destination, 16);
	memcpy(&to.sin6_addr, packet->destination, 16);
	if (IN6_IS_ADDR_LINKLOCAL(&to.sin6_addr))
		to.sin6_scope_id = packet->ifindex;
	return sendmsg(fd, &message, 0) < 0 ? -errno : 0;
}

int ip_packet_deliver(const struct ip_packet *packet)
{
	_cleanup_fd_ int fd = socket(packet->family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	int mark = NETWORK_LOCK_MARK;

	if (packet->payload_size > UINT16_MAX - (packet->family == AF_INET6 ? 0 : sizeof(struct iphdr)))
		return -EMSGSIZE;
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return -errno;
	if (packet->ifindex && setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &packet->ifindex, sizeof(packet->ifindex)))
		return -errno;
	fill_checksum(packet);
	return packet->family == AF_INET6 ? send_packet6(fd, packet) : send_packet4(fd, packet);
}
