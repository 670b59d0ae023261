/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers as a descriptor: time that remains, intervals, unread expirations, absolute times, not armed.
 *
 * Nothing here depends on how long a dump takes: times are hours, or have passed.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define HOUR 3600
#define NS_PER_SECOND 1000000000LL

static int new_timer(int clock, int flags, int64_t value_ns, int64_t interval_ns)
{
	struct itimerspec time = {
		.it_value = {value_ns / NS_PER_SECOND, value_ns % NS_PER_SECOND},
		.it_interval = {interval_ns / NS_PER_SECOND, interval_ns % NS_PER_SECOND},
	};
	int fd = MUST(timerfd_create(clock, TFD_NONBLOCK));

	MUST(timerfd_settime(fd, flags, &time, NULL));
	return fd;
}

/* What remains must be between an hour less ten minutes and an hour. */
static void check_hour(int fd, int64_t hours, int64_t interval_s)
{
	struct itimerspec time = {};

	CHECK(timerfd_gettime(fd, &time) == 0);
	CHECK(time.it_value.tv_sec <= hours * HOUR && time.it_value.tv_sec > hours * HOUR - 600,
	      "%ld s remain of %ld h", time.it_value.tv_sec, hours);
	CHECK(time.it_interval.tv_sec == interval_s, "interval %ld", time.it_interval.tv_sec);
}

int main(void)
{
	uint64_t ticks;
	int relative = new_timer(CLOCK_MONOTONIC, 0, HOUR * NS_PER_SECOND, 7 * NS_PER_SECOND);
	int boottime = new_timer(CLOCK_BOOTTIME, 0, HOUR * NS_PER_SECOND, 0);
	int absolute = new_timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME,
				 harness_clock_ns(CLOCK_MONOTONIC) + 2 * HOUR * NS_PER_SECOND, 0);
	int wall = new_timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET,
			     harness_clock_ns(CLOCK_REALTIME) + 2 * HOUR * NS_PER_SECOND, 0);
	int never = new_timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, INT64_MAX, 0);
	int fired = new_timer(CLOCK_MONOTONIC, 0, 1, 0);
	int periodic = new_timer(CLOCK_MONOTONIC, 0, 1, 1000000);
	int idle = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
	struct pollfd due[] = {{.fd = fired, .events = POLLIN}, {.fd = periodic, .events = POLLIN}};
	struct itimerspec time;

	for (int i = 0; i < 2; i++)
		MUST(poll(&due[i], 1, -1));
	harness_ready();
	for (bool first = true; harness_wait_check(); first = false) {
		check_hour(relative, 1, 7);
		check_hour(boottime, 1, 0);
		check_hour(absolute, 2, 0);
		check_hour(wall, 2, 0);
		CHECK(timerfd_gettime(never, &time) == 0 && time.it_value.tv_sec > 9000000000 - 4000000000,
		      "%ld s remain", time.it_value.tv_sec);
		if (first) {
			CHECK(read(fired, &ticks, sizeof(ticks)) == sizeof(ticks) && ticks == 1,
			      "the expiration is lost");
			CHECK(read(periodic, &ticks, sizeof(ticks)) == sizeof(ticks) && ticks >= 1);
		}
		CHECK(read(fired, &ticks, sizeof(ticks)) == -1 && errno == EAGAIN);
		/* It goes on. */
		CHECK(poll(&due[1], 1, 60000) == 1, "the periodic timer has stopped");
		CHECK(read(periodic, &ticks, sizeof(ticks)) == sizeof(ticks) && ticks >= 1);
		CHECK(timerfd_gettime(idle, &time) == 0 && !time.it_value.tv_sec && !time.it_value.tv_nsec);
		CHECK(fcntl(idle, F_GETFD) == FD_CLOEXEC);
		CHECK(read(relative, &ticks, sizeof(ticks)) == -1 && errno == EAGAIN);
		harness_report();
	}
	return 0;
}
