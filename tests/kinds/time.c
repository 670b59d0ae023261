/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks: CLOCK_MONOTONIC and CLOCK_BOOTTIME never go back, and the cpu time of the process does not start again below
 * what it was by more than what a restore cannot give back (the kernel has no way to set it: it may be smaller).
 */
#include "harness.h"

#include <errno.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE,
			     CLOCK_REALTIME};
#define CLOCKS (sizeof(clocks) / sizeof(clocks[0]))

int main(void)
{
	int64_t last_ns[CLOCKS];
	int64_t realtime_offset_ns;

	for (size_t i = 0; i < CLOCKS; i++)
		last_ns[i] = harness_clock_ns(clocks[i]);
	realtime_offset_ns = harness_clock_ns(CLOCK_REALTIME) - harness_clock_ns(CLOCK_BOOTTIME);
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < CLOCKS; i++) {
			int64_t now_ns = harness_clock_ns(clocks[i]);
			CHECK(now_ns >= last_ns[i], "clock %d went back by %ld ns", clocks[i], last_ns[i] - now_ns);
			last_ns[i] = now_ns;
		}
		/* On one machine both count the same time; a minute is for an adjustment of the real-time clock. */
		int64_t drift_ns =
			harness_clock_ns(CLOCK_REALTIME) - harness_clock_ns(CLOCK_BOOTTIME) - realtime_offset_ns;
		CHECK(drift_ns < 60000000000 && drift_ns > -60000000000, "drift %ld ns", drift_ns);
		CHECK(clock() >= 0);
		harness_report();
	}
	return 0;
}
