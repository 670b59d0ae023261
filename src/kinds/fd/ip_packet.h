/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that criu makes itself, for sockets of this host. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct ip_packet {
	int family;                         /* AF_INET: one word of each address, AF_INET6: four */
	uint32_t source[4], destination[4]; /* network byte order; the destination is an address of this host */
	uint8_t protocol;
	uint8_t ttl, tos; /* ttl 0 = 64 */
	int ifindex;      /* that the receiver shall see; 0 = of the loopback device, or any */
	void *payload;    /* header of the protocol and data */
	size_t payload_size;
	size_t checksum_offset; /* of the protocol's checksum, which covers addresses and payload and is filled in */
};

/*
 * Delivers @packet to this host's own sockets, as if it had come from the network: it goes through the loopback device,
 * never leaves the host and passes the network lock. The checksum is written into the payload. Returns 0 or -errno.
 */
int ip_packet_deliver(const struct ip_packet *packet);
