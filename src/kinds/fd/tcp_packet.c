/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel has no call that says "the peer has closed its side": criu sends itself the peer's segment.
 */
#include "kinds/fd/tcp_packet.h"

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>

#include "kinds/fd/ip_packet.h"

int tcp_packet_deliver(const struct connection *connection, const struct tcp_packet *packet)
{
	struct tcphdr tcp = {
		.source = htons(connection->remote_port),
		.dest = htons(connection->local_port),
		.seq = htonl(packet->sequence),
		.ack_seq = htonl(packet->acknowledgment),
		.doff = sizeof(tcp) / 4,
		.ack = 1,
		.fin = packet->fin,
		.window = htons(packet->window),
	};
	struct ip_packet whole = {
		.family = connection->family,
		.protocol = IPPROTO_TCP,
		.payload = &tcp,
		.payload_size = sizeof(tcp),
		.checksum_offset = offsetof(struct tcphdr, check),
	};

	memcpy(whole.source, connection->remote, sizeof(whole.source));
	memcpy(whole.destination, connection->local, sizeof(whole.destination));
	return ip_packet_deliver(&whole);
}
