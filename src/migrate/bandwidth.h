/* SPDX-License-Identifier: Apache-2.0 */
/* --bandwidth: a token bucket that all connections of a channel draw from. Pure; the caller sleeps. */
#pragma once

#include <stdint.h>

struct bandwidth {
	uint64_t bytes_per_second; /* 0 = no limit */
	uint64_t capacity_bytes;   /* that may be sent at once after a pause */
	double tokens;             /* may be negative: already promised to somebody who waits */
	uint64_t last_ns;
};

/* @now_ns: of a monotonic clock. */
void bandwidth_init(struct bandwidth *bandwidth, uint64_t bytes_per_second, uint64_t now_ns);
/* Changes the limit of a running transfer; 0 = no limit. */
void bandwidth_set(struct bandwidth *bandwidth, uint64_t bytes_per_second, uint64_t now_ns);
/* Takes @bytes. Returns the ns that the caller must wait before it sends them. Needs a lock around it. */
uint64_t bandwidth_take(struct bandwidth *bandwidth, uint64_t bytes, uint64_t now_ns);
