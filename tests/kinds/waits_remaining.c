/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits whose end only the kernel knows: after a restore they wait what was left, not their whole time again, and end
 * no earlier than they would have.
 *
 * skip-unless: path /sys/kernel/btf/vmlinux
 */
#include "harness.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000LL
#define WAIT_NS (2000 * NS_PER_MS)
/* How much of it is over when the runner gets its answer, and dumps. */
#define BEFORE_DUMP_NS (1500 * NS_PER_MS)

/*
 * Time while the program runs: one that is away, or that gets no processor, gets no older. A wait that begins anew
 * lasts BEFORE_DUMP_NS + WAIT_NS at least, one that does not WAIT_NS.
 */
static atomic_llong age_ns;

static void *grow_older(void *unused)
{
	const struct timespec tick = {.tv_nsec = 10 * NS_PER_MS};
	int64_t before = harness_clock_ns(CLOCK_MONOTONIC);

	for (;;) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL);
		int64_t now = harness_clock_ns(CLOCK_MONOTONIC), passed = now - before;
		atomic_fetch_add(&age_ns, passed < 50 * NS_PER_MS ? passed : 50 * NS_PER_MS);
		before = now;
	}
	return NULL;
}

static const struct timespec wait_time = {.tv_sec = WAIT_NS / (1000 * NS_PER_MS)};

/* Each waits WAIT_NS and returns 0 or an error number. */

static int wait_nanosleep(void)
{
	return syscall(SYS_nanosleep, &wait_time, NULL) < 0 ? errno : 0;
}

static int wait_monotonic(void)
{
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &wait_time, NULL) < 0 ? errno : 0;
}

static int wait_realtime(void)
{
	return syscall(SYS_clock_nanosleep, CLOCK_REALTIME, 0, &wait_time, NULL) < 0 ? errno : 0;
}

static int wait_boottime(void)
{
	return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &wait_time, NULL) < 0 ? errno : 0;
}

static int wait_poll(void)
{
	return poll(NULL, 0, WAIT_NS / NS_PER_MS) < 0 ? errno : 0;
}

static int wait_futex(void)
{
	static uint32_t futex;

	return syscall(SYS_futex, &futex, FUTEX_WAIT_PRIVATE, 0, &wait_time, NULL, 0) == 0 ? EAGAIN
	       : errno == ETIMEDOUT                                                        ? 0
											   : errno;
}

static struct waiter {
	const char *name;
	int (*wait)(void);
	pthread_t thread;
	int result;
	int64_t lasted_ns, aged_ns;
} waiters[] = {
	{"nanosleep", wait_nanosleep},
	{"clock_nanosleep", wait_monotonic},
	{"clock_nanosleep of CLOCK_REALTIME", wait_realtime},
	{"clock_nanosleep of CLOCK_BOOTTIME", wait_boottime},
	{"poll", wait_poll},
	{"futex", wait_futex},
};
#define WAITERS (sizeof(waiters) / sizeof(waiters[0]))

/* Held from the start to the check: on a busy machine a wait may end before, and its thread is not to be missed. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *waiter_main(void *argument)
{
	struct waiter *waiter = argument;
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC), age = atomic_load(&age_ns);

	waiter->result = waiter->wait();
	waiter->lasted_ns = harness_clock_ns(CLOCK_MONOTONIC) - start;
	waiter->aged_ns = atomic_load(&age_ns) - age;
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	return NULL;
}

static void start_all(void)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	const struct timespec span = {.tv_sec = BEFORE_DUMP_NS / (1000 * NS_PER_MS),
				      .tv_nsec = BEFORE_DUMP_NS % (1000 * NS_PER_MS)};

	pthread_mutex_lock(&gate);
	for (size_t i = 0; i < WAITERS; i++)
		MUST_ZERO(pthread_create(&waiters[i].thread, NULL, waiter_main, &waiters[i]));
	while (harness_clock_ns(CLOCK_MONOTONIC) - start < BEFORE_DUMP_NS)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &span, NULL);
}

static void check_all(void)
{
	pthread_mutex_unlock(&gate);
	for (size_t i = 0; i < WAITERS; i++) {
		struct waiter *waiter = &waiters[i];
		MUST_ZERO(pthread_join(waiter->thread, NULL));
		CHECK(!waiter->result, "%s: error %d", waiter->name, waiter->result);
		CHECK(waiter->lasted_ns >= WAIT_NS, "%s ended after %ld ns", waiter->name, waiter->lasted_ns);
		CHECK(waiter->aged_ns < BEFORE_DUMP_NS / 2 + WAIT_NS, "%s began anew: it has waited %ld ns",
		      waiter->name, waiter->aged_ns);
	}
}

int main(void)
{
	pthread_t thread;
	bool wait = false;

	MUST_ZERO(pthread_create(&thread, NULL, grow_older, NULL));
	harness_ready();
	while (harness_wait_check()) {
		if (wait)
			check_all();
		start_all();
		wait = true;
		harness_report();
	}
	return 0;
}
