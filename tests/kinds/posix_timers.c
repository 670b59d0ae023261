/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timer_create(2): ids with gaps, clocks, ways to notify, remaining time and interval, an expired timer, one that a
 * thread gets, one of the C library with a thread of its own. Two tick all the time, so for a moment there are signals:
 * may-differ: status.(ShdPnd|SigPnd|SigBlk)
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TIMERS 7
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static int ids[TIMERS];
static volatile sig_atomic_t ticks, tick_value, tick_overrun_sane = 1;
static atomic_int thread_ticks, library_ticks;
static pid_t waiter_tid;

static int create(clockid_t clock, int notify, int signal, int value, pid_t tid)
{
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_int = value};
	int id = -1;

	if (notify & SIGEV_THREAD_ID)
		event.sigev_notify_thread_id = tid;
	MUST(syscall(SYS_timer_create, clock, &event, &id));
	return id;
}

static void arm(int id, int64_t value_ns, int64_t interval_ns)
{
	struct itimerspec time = {{interval_ns / 1000000000, interval_ns % 1000000000},
				  {value_ns / 1000000000, value_ns % 1000000000}};

	MUST(syscall(SYS_timer_settime, id, 0, &time, NULL));
}

static void on_tick(int signal, siginfo_t *info, void *context)
{
	ticks++;
	tick_value = info->si_value.sival_int;
	if (info->si_code != SI_TIMER || info->si_overrun < 0)
		tick_overrun_sane = 0;
}

/* Takes the signals of a timer that is directed at this thread. */
static void *wait_for_ticks(void *argument)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 2);
	waiter_tid = syscall(SYS_gettid);
	for (;;) {
		siginfo_t info = {};
		if (sigwaitinfo(&set, &info) == SIGRTMIN + 2 && info.si_value.sival_int == 222)
			atomic_fetch_add(&thread_ticks, 1);
	}
	return NULL;
}

static void on_library_tick(union sigval value)
{
	if (value.sival_int == 333)
		atomic_fetch_add(&library_ticks, 1);
}

static void check_remaining(int which, int64_t at_most_s, int64_t at_least_s, int64_t interval_ns)
{
	struct itimerspec now = {};

	CHECK(syscall(SYS_timer_gettime, ids[which], &now) == 0, "timer %d: %m", which);
	CHECK(now.it_value.tv_sec <= at_most_s && now.it_value.tv_sec >= at_least_s, "timer %d: remaining %ld s", which,
	      now.it_value.tv_sec);
	CHECK(now.it_interval.tv_sec * 1000000000LL + now.it_interval.tv_nsec == interval_ns, "timer %d: interval",
	      which);
}

static void make_timers(void)
{
	/* Gaps in the ids: what lies between is deleted. */
	ids[0] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 1, 0);
	for (int i = 0; i < 5; i++)
		MUST(syscall(SYS_timer_delete, create(CLOCK_REALTIME, SIGEV_NONE, 0, 0, 0)));
	ids[1] = create(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 7, 2, 0);
	ids[2] = create(CLOCK_BOOTTIME, SIGEV_NONE, 0, 3, 0);
	ids[3] = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGUSR2, 4, 0);
	ids[4] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, SIGRTMIN + 2, 222, waiter_tid);
	ids[5] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 6, 0); /* never armed */
	ids[6] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 111, 0);
	arm(ids[0], 3600000000007, 3000000000123);
	arm(ids[1], 7200000000000, 0);
	arm(ids[2], 5000000000000, 1);
	arm(ids[3], 9000000000000, 0);
	arm(ids[4], 20000000, 20000000);
	arm(ids[6], 10000000, 10000000);
}

static void check_ticking(void)
{
	int before = ticks, thread_before = thread_ticks;

	while (ticks < before + 2 || thread_ticks < thread_before + 2)
		usleep(1000);
	CHECK(tick_value == 111 && tick_overrun_sane);
}

static unsigned long thread_count(void)
{
	struct stat stat;

	MUST(fstatat(AT_FDCWD, "/proc/self/task", &stat, 0));
	return stat.st_nlink - 2;
}

/* The library makes a thread for each tick; it shall be gone when the program is looked at. */
static void check_library_timer(timer_t timer)
{
	const struct itimerspec soon = {.it_value = {0, 1000000}}, late = {.it_value = {3600, 0}};
	int before = library_ticks;
	unsigned long threads = thread_count();
	struct itimerspec left;

	CHECK(!timer_gettime(timer, &left) && left.it_value.tv_sec >= 3000 && left.it_value.tv_sec <= 3600);
	CHECK(!timer_settime(timer, 0, &soon, NULL), "%m");
	while (library_ticks == before || thread_count() > threads)
		usleep(1000);
	timer_settime(timer, 0, &late, NULL);
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct sigevent library = {
		.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 333, .sigev_notify_function = on_library_tick};
	const struct itimerspec late = {.it_value = {3600, 0}};
	pthread_t thread;
	sigset_t blocked;
	timer_t library_timer;
	int made_before[TIMERS];

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 2);
	MUST(sigprocmask(SIG_BLOCK, &blocked, NULL));
	MUST(sigaction(SIGRTMIN + 1, &action, NULL));
	MUST_ZERO(pthread_create(&thread, NULL, wait_for_ticks, NULL));
	while (!*(volatile pid_t *)&waiter_tid)
		usleep(100);
	make_timers();
	memcpy(made_before, ids, sizeof(ids));
	MUST(timer_create(CLOCK_MONOTONIC, &library, &library_timer));
	MUST(timer_settime(library_timer, 0, &late, NULL));
	int newest = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	harness_ready();
	while (harness_wait_check()) {
		/* Ten minutes is more than any test may take. */
		check_remaining(0, 3600, 3000, 3000000000123);
		check_remaining(1, 7200, 6600, 0);
		check_remaining(2, 5000, 4400, 1);
		check_remaining(3, 9000, 8400, 0);
		check_remaining(5, 0, 0, 0);
		check_ticking();
		check_library_timer(library_timer);
		CHECK(!memcmp(made_before, ids, sizeof(ids)));
		/* New timers get new ids. */
		int id = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
		CHECK(id > newest, "new timer %d, the newest was %d", id, newest);
		syscall(SYS_timer_delete, id);
		harness_report();
	}
	return 0;
}
