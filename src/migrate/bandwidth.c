/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/bandwidth.h"

enum { NS_PER_SECOND = 1000000000 };

/* A tenth of a second's worth may go at once: less would make many short sleeps, more would be seen as bursts. */
void bandwidth_init(struct bandwidth *bandwidth, uint64_t bytes_per_second, uint64_t now_ns)
{
	*bandwidth = (struct bandwidth){
		.bytes_per_second = bytes_per_second,
		.capacity_bytes = bytes_per_second / 10,
		.tokens = (double)(bytes_per_second / 10),
		.last_ns = now_ns,
	};
}

void bandwidth_set(struct bandwidth *bandwidth, uint64_t bytes_per_second, uint64_t now_ns)
{
	if (bandwidth->bytes_per_second != bytes_per_second)
		bandwidth_init(bandwidth, bytes_per_second, now_ns);
}

uint64_t bandwidth_take(struct bandwidth *bandwidth, uint64_t bytes, uint64_t now_ns)
{
	double rate = (double)bandwidth->bytes_per_second / NS_PER_SECOND;

	if (!bandwidth->bytes_per_second)
		return 0;
	if (now_ns > bandwidth->last_ns)
		bandwidth->tokens += (double)(now_ns - bandwidth->last_ns) * rate;
	bandwidth->last_ns = now_ns;
	if (bandwidth->tokens > (double)bandwidth->capacity_bytes)
		bandwidth->tokens = (double)bandwidth->capacity_bytes;
	bandwidth->tokens -= (double)bytes;
	return bandwidth->tokens >= 0 ? 0 : (uint64_t)(-bandwidth->tokens / rate);
}
