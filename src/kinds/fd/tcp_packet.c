/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel has no call that says "the peer has closed its side". What it has is a raw socket that sends whole
 * packets with any source address: sent to a local address, a packet goes through the loopback device and reaches the
 * socket like one from the network. The kernel fills in the IP header's checksum and length; the checksum of the
 * segment is ours.
 */
#include "kinds/fd/tcp_packet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"

struct packet4 {
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed, aligned(4)));

struct packet6 {
	struct ip6_hdr ip;
	struct tcphdr tcp;
} __attribute__((packed, aligned(4)));

/* The Internet checksum's sum over @size bytes (even), not folded. */
static uint32_t checksum_add(uint32_t sum, const void *data, size_t size)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i + 1 < size; i += 2)
		sum += (uint32_t)bytes[i] << 8 | bytes[i + 1];
	return sum;
}

static uint16_t checksum_fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static void fill_segment(struct tcphdr *tcp, const struct connection *connection, const struct tcp_packet *packet)
{
	size_t address_size = connection->family == AF_INET6 ? 16 : 4;
	uint32_t sum = IPPROTO_TCP + sizeof(*tcp); /* the pseudo header's protocol and length */

	tcp->source = htons(connection->remote_port);
	tcp->dest = htons(connection->local_port);
	tcp->seq = htonl(packet->sequence);
	tcp->ack_seq = htonl(packet->acknowledgment);
	tcp->doff = sizeof(*tcp) / 4;
	tcp->ack = 1;
	tcp->fin = packet->fin;
	tcp->window = htons(packet->window);
	sum = checksum_add(sum, connection->remote, address_size);
	sum = checksum_add(sum, connection->local, address_size);
	sum = checksum_add(sum, tcp, sizeof(*tcp));
	tcp->check = checksum_fold(sum);
}

static int send_packet4(int fd, const struct connection *connection, const struct tcp_packet *packet)
{
	struct packet4 data = {.ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP}};
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {connection->local[0]}};

	data.ip.saddr = connection->remote[0];
	data.ip.daddr = connection->local[0];
	data.ip.tot_len = htons(sizeof(data));
	fill_segment(&data.tcp, connection, packet);
	return sendto(fd, &data, sizeof(data), 0, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
}

static int send_packet6(int fd, const struct connection *connection, const struct tcp_packet *packet)
{
	struct packet6 data = {.ip = {.ip6_flow = htonl(6u << 28),
				      .ip6_plen = htons(sizeof(struct tcphdr)),
				      .ip6_nxt = IPPROTO_TCP,
				      .ip6_hlim = 64}};
	struct sockaddr_in6 to = {.sin6_family = AF_INET6};

	memcpy(&data.ip.ip6_src, connection->remote, 16);
	memcpy(&data.ip.ip6_dst, connection->local, 16);
	memcpy(&to.sin6_addr, connection->local, 16);
	fill_segment(&data.tcp, connection, packet);
	return sendto(fd, &data, sizeof(data), 0, (struct sockaddr *)&to, sizeof(to)) < 0 ? -errno : 0;
}

int tcp_packet_deliver(const struct connection *connection, const struct tcp_packet *packet)
{
	_cleanup_fd_ int fd = socket(connection->family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	int mark = NETWORK_LOCK_MARK;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return -errno;
	if (connection->family == AF_INET6)
		return send_packet6(fd, connection, packet);
	return send_packet4(fd, connection, packet);
}
