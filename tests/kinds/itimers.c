/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setitimer(2): long timers keep what remains and their interval; one that is due soon goes off, once, whether that
 * is before, during or after the checkpoint. A ticking one has its signal pending now and then:
 * may-differ: status.(ShdPnd|SigBlk)
 */
#include "harness.h"

#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t alarms;
static int64_t deadline_ns;

static void on_alarm(int signal)
{
	alarms++;
}

static int64_t microseconds(struct timeval time)
{
	return time.tv_sec * 1000000LL + time.tv_usec;
}

/* The clocks of virtual and profiling time stand still while the program waits. */
static void check_long(int which, int64_t interval_us, int64_t at_most_us, int64_t at_least_us)
{
	struct itimerval now;

	CHECK(!getitimer(which, &now));
	CHECK(microseconds(now.it_interval) == interval_us, "timer %d: interval %ld", which,
	      microseconds(now.it_interval));
	CHECK(microseconds(now.it_value) <= at_most_us && microseconds(now.it_value) >= at_least_us,
	      "timer %d: remaining %ld us", which, microseconds(now.it_value));
}

/* A child whose real-time timer fires every 10 ms and that counts the signals. */
static void check_ticking(void *argument)
{
	struct itimerval fast = {{0, 10000}, {0, 10000}};
	static bool started;

	if (!started) {
		signal(SIGALRM, on_alarm);
		MUST(setitimer(ITIMER_REAL, &fast, NULL));
		started = true;
	}
	int before = alarms;
	while (alarms < before + 3)
		usleep(1000);
}

/* Once the program has run for long enough after its deadline, the alarm must have come, and only one. */
static void check_single_shot(void)
{
	struct itimerval now;

	while (harness_clock_ns(CLOCK_MONOTONIC) < deadline_ns)
		usleep(1000);
	getitimer(ITIMER_REAL, &now);
	while (!alarms && microseconds(now.it_value)) {
		usleep(1000);
		getitimer(ITIMER_REAL, &now);
	}
	CHECK(alarms == 1, "%d alarms", alarms);
	CHECK(microseconds(now.it_value) == 0 && microseconds(now.it_interval) == 0);
}

static void arm_single_shot(void)
{
	struct itimerval soon = {{0, 0}, {0, 300000}};

	alarms = 0;
	deadline_ns = harness_clock_ns(CLOCK_MONOTONIC) + 300000000;
	setitimer(ITIMER_REAL, &soon, NULL);
}

int main(void)
{
	struct itimerval virtual = {{77, 5}, {7200, 0}}, profiling = {{0, 0}, {3600, 123456}};

	harness_start_child(check_ticking, NULL);
	harness_check_children();
	signal(SIGALRM, on_alarm);
	MUST(setitimer(ITIMER_VIRTUAL, &virtual, NULL));
	MUST(setitimer(ITIMER_PROF, &profiling, NULL));
	arm_single_shot();
	harness_ready();
	while (harness_wait_check()) {
		/* A minute of the processor is more than any checkpoint may take away. */
		check_long(ITIMER_VIRTUAL, 77000005, 7201000000, 7140000000);
		check_long(ITIMER_PROF, 0, 3601000000, 3540000000);
		check_single_shot();
		arm_single_shot();
		harness_check_children();
		harness_report();
	}
	return 0;
}
