/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks: those that count from boot never go back, for the vDSO, for system calls and in new processes alike; timers
 * that were set to a point in time keep it. The cpu time of the process may be smaller (the kernel has no way to set
 * it), but not negative.
 *
 * If the program's directory has a file "clocks" ("MONOTONIC BOOTTIME" in nanoseconds), the clocks go on from there:
 * flows/test_clocks.py tells the program so that it was moved.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000L
/* The points in time that are waited for lie this far away: further than any test moves the clocks. */
#define FAR_SECONDS 100000000L
/* More than a test can take. */
#define HOUR_NS (3600 * NS_PER_SECOND)

static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE,
			     CLOCK_REALTIME};
#define CLOCKS (sizeof(clocks) / sizeof(clocks[0]))
static int64_t last_ns[CLOCKS];
static int timer_fds[2];
static volatile int started, woken;

static int64_t syscall_clock_ns(int clock)
{
	struct timespec now;

	MUST(syscall(SYS_clock_gettime, clock, &now));
	return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

/* The kernel and the vDSO, asked in turn, must agree on the order. */
static void check_clock(size_t index)
{
	int64_t first = harness_clock_ns(clocks[index]), second = syscall_clock_ns(clocks[index]);
	int64_t third = harness_clock_ns(clocks[index]);

	CHECK(first >= last_ns[index], "clock %d went back by %ld ns", clocks[index], last_ns[index] - first);
	CHECK(second >= first && third >= second, "clock %d: %ld in the vDSO, %ld in the kernel, then %ld",
	      clocks[index], first, second, third);
	last_ns[index] = third;
}

static void check_moved(void)
{
	FILE *file = fopen("clocks", "r");
	long monotonic_ns, boottime_ns;

	if (!file)
		return;
	MUST(fscanf(file, "%ld %ld", &monotonic_ns, &boottime_ns) == 2 ? 0 : -1);
	fclose(file);
	monotonic_ns = harness_clock_ns(CLOCK_MONOTONIC) - monotonic_ns;
	boottime_ns = harness_clock_ns(CLOCK_BOOTTIME) - boottime_ns;
	CHECK(monotonic_ns >= 0 && monotonic_ns < HOUR_NS, "CLOCK_MONOTONIC is off by %ld ns", monotonic_ns);
	CHECK(boottime_ns >= 0 && boottime_ns < HOUR_NS, "CLOCK_BOOTTIME is off by %ld ns", boottime_ns);
	/* Only the first check after a move knows; then the clocks go on by themselves. */
	MUST(unlink("clocks"));
	for (size_t i = 0; i < CLOCKS; i++)
		last_ns[i] = 0;
}

static void check_child(void)
{
	int64_t before = harness_clock_ns(CLOCK_BOOTTIME), inside = 0;
	int pair[2], status;

	MUST(pipe(pair));
	pid_t pid = MUST(fork());
	if (!pid) {
		inside = harness_clock_ns(CLOCK_BOOTTIME);
		_exit(write(pair[1], &inside, sizeof(inside)) != sizeof(inside));
	}
	CHECK(read(pair[0], &inside, sizeof(inside)) == sizeof(inside));
	MUST(waitpid(pid, &status, 0));
	CHECK(inside >= before && inside <= harness_clock_ns(CLOCK_BOOTTIME), "a new process sees another clock");
	close(pair[0]);
	close(pair[1]);
}

static void check_timers(void)
{
	for (int i = 0; i < 2; i++) {
		struct itimerspec left;
		CHECK(timerfd_gettime(timer_fds[i], &left) == 0);
		CHECK(left.it_value.tv_sec <= FAR_SECONDS && left.it_value.tv_sec > FAR_SECONDS - 3600,
		      "clock %d: %ld s left", clocks[i], left.it_value.tv_sec);
	}
	CHECK(!woken, "a thread did not sleep until its point in time");
}

static void *sleep_until(void *argument)
{
	struct timespec until = {.tv_sec = harness_clock_ns(CLOCK_MONOTONIC) / NS_PER_SECOND + 2 * FAR_SECONDS};

	started = 1;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	woken = 1;
	return NULL;
}

static void start_timers(void)
{
	pthread_t thread;

	for (int i = 0; i < 2; i++) {
		struct itimerspec until = {.it_value.tv_sec =
						   harness_clock_ns(clocks[i]) / NS_PER_SECOND + FAR_SECONDS};
		timer_fds[i] = MUST(timerfd_create(clocks[i], 0));
		MUST(timerfd_settime(timer_fds[i], TFD_TIMER_ABSTIME, &until, NULL));
	}
	MUST_ZERO(pthread_create(&thread, NULL, sleep_until, NULL));
	/* Before, it still has the signal mask that threads are born with. */
	while (!started)
		usleep(100);
}

int main(void)
{
	start_timers();
	for (size_t i = 0; i < CLOCKS; i++)
		last_ns[i] = harness_clock_ns(clocks[i]);
	harness_ready();
	while (harness_wait_check()) {
		check_moved();
		for (size_t i = 0; i < CLOCKS; i++)
			check_clock(i);
		check_child();
		check_timers();
		CHECK(clock() >= 0);
		harness_report();
	}
	return 0;
}
