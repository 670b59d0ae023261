/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that the peer of a restored connection sent once and will not send again. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "kinds/fd/network_lock.h"

/* One segment without data and options, from the peer to this end. */
struct tcp_packet {
	uint32_t sequence, acknowledgment;
	uint16_t window; /* as on the wire, not scaled */
	bool fin;
};

/*
 * Delivers @packet to the socket of @connection on this host, as if the peer had sent it. It never leaves the host
 * and passes the network lock. Returns 0 or -errno.
 */
int tcp_packet_deliver(const struct connection *connection, const struct tcp_packet *packet);
