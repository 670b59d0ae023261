/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls that a dump and a restore interrupt, each in a thread of its own. Where the kernel would have gone on
 * by itself after a stop, none may return EINTR; with a timeout, none may return before its time.
 *
 * The long ones are cut short by the main thread at each check, by a byte, a wake or a signal, and must then say so;
 * the timed ones run again and again with 300 ms, so that some of them always span a dump.
 */
#include "harness.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TIMED_NS 300000000LL
/* Time that the tree is away counts for clocks that go on; being late is the scheduler's right. */

struct waiter {
	const char *name;
	/* Waits once; returns the error number, 0 = ended as it should, -1 = ended too early. */
	int (*wait)(struct waiter *waiter);
	/* Ends the wait; NULL = it ends by itself. */
	void (*end)(struct waiter *waiter);
	pthread_t thread;
	int pipe[2], epoll;
	uint32_t futex;
	atomic_int tid;
	atomic_uint rounds;
};

static struct timespec span(int64_t ns)
{
	return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/* For waits that must have lasted TIMED_NS since @start. */
static int timed(int64_t start, int error)
{
	if (error)
		return error;
	return harness_clock_ns(CLOCK_MONOTONIC) - start >= TIMED_NS ? 0 : -1;
}

static int wait_nanosleep(struct waiter *waiter)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	struct timespec time = span(TIMED_NS);

	return timed(start, syscall(SYS_nanosleep, &time, NULL) < 0 ? errno : 0);
}

static int wait_clock_nanosleep(struct waiter *waiter)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	struct timespec time = span(TIMED_NS);

	return timed(start, clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL));
}

static int wait_clock_nanosleep_absolute(struct waiter *waiter)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	struct timespec time = span(start + TIMED_NS);

	return timed(start, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL));
}

static int wait_futex_timed(struct waiter *waiter)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	struct timespec time = span(TIMED_NS);

	if (syscall(SYS_futex, &waiter->futex, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0) == 0)
		return -1;
	return timed(start, errno == ETIMEDOUT ? 0 : errno);
}

static int wait_poll_timed(struct waiter *waiter)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	struct pollfd poll_fd = {.fd = waiter->pipe[0], .events = POLLIN};
	int count = poll(&poll_fd, 1, TIMED_NS / 1000000);

	return timed(start, count < 0 ? errno : count > 0 ? -1 : 0);
}

static int wait_futex(struct waiter *waiter)
{
	/* A wake for another reason is allowed by futex(2), EINTR is not. */
	while (__atomic_load_n(&waiter->futex, __ATOMIC_SEQ_CST) == 0)
		if (syscall(SYS_futex, &waiter->futex, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) < 0 && errno != EAGAIN)
			return errno;
	__atomic_store_n(&waiter->futex, 0, __ATOMIC_SEQ_CST);
	return 0;
}

static void end_futex(struct waiter *waiter)
{
	__atomic_store_n(&waiter->futex, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &waiter->futex, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static int take_byte(struct waiter *waiter)
{
	char byte;
	ssize_t got = read(waiter->pipe[0], &byte, 1);

	return got == 1 ? 0 : got < 0 ? errno : -1;
}

static void end_pipe(struct waiter *waiter)
{
	CHECK(write(waiter->pipe[1], "x", 1) == 1, "%s", waiter->name);
}

static int wait_epoll(struct waiter *waiter)
{
	struct epoll_event event;
	int count = epoll_wait(waiter->epoll, &event, 1, -1);

	/* signal(7): never restarted, not even after a stop; so the program must do what all programs do. */
	while (count < 0 && errno == EINTR)
		count = epoll_wait(waiter->epoll, &event, 1, -1);
	if (count != 1 || event.data.u64 != 0x1122334455667788)
		return count < 0 ? errno : -1;
	return take_byte(waiter);
}

static int wait_poll(struct waiter *waiter)
{
	struct pollfd poll_fd = {.fd = waiter->pipe[0], .events = POLLIN};
	int count = poll(&poll_fd, 1, -1);

	if (count != 1)
		return count < 0 ? errno : -1;
	return take_byte(waiter);
}

static int wait_select(struct waiter *waiter)
{
	struct timeval time = {.tv_sec = 1000000};
	fd_set readable;
	FD_ZERO(&readable);
	FD_SET(waiter->pipe[0], &readable);
	int count = select(waiter->pipe[0] + 1, &readable, NULL, NULL, &time);

	if (count != 1)
		return count < 0 ? errno : -1;
	return take_byte(waiter);
}

/* Counts in the thread that got the signal. */
static _Thread_local volatile sig_atomic_t caught;

static void on_signal(int signal)
{
	caught++;
}

static int wait_pause(struct waiter *waiter)
{
	sigset_t mask, before;
	int result = 0;

	/* Blocked but while waiting: the signal must not come between the test and the wait. */
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &mask, &before);
	caught = 0;
	sigdelset(&before, SIGUSR1);
	if (sigsuspend(&before) != -1 || errno != EINTR)
		result = errno ? errno : -1;
	else if (!caught)
		result = EINTR;
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	if (!sigismember(&mask, SIGUSR1))
		return -1;
	return result;
}

static int wait_signal(struct waiter *waiter)
{
	sigset_t mask;
	siginfo_t information;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	/* sigtimedwait(2): may be interrupted by a stop, then EINTR is right. */
	while (sigwaitinfo(&mask, &information) < 0)
		if (errno != EINTR)
			return errno;
	return information.si_signo == SIGUSR1 ? 0 : -1;
}

static void end_signal(struct waiter *waiter)
{
	CHECK(syscall(SYS_tgkill, getpid(), waiter->tid, SIGUSR1) == 0, "%s: %m", waiter->name);
}

/* pause() itself, in a thread where SIGUSR1 is not blocked. */
static int wait_plain_pause(struct waiter *waiter)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	caught = 0;
	pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
	if (!caught)
		pause();
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	return caught ? 0 : EINTR;
}

static struct waiter waiters[] = {
	{.name = "nanosleep", .wait = wait_nanosleep},
	{.name = "clock_nanosleep", .wait = wait_clock_nanosleep},
	{.name = "clock_nanosleep absolute", .wait = wait_clock_nanosleep_absolute},
	{.name = "futex with timeout", .wait = wait_futex_timed},
	{.name = "poll with timeout", .wait = wait_poll_timed},
	{.name = "futex", .wait = wait_futex, .end = end_futex},
	{.name = "read", .wait = take_byte, .end = end_pipe},
	{.name = "poll", .wait = wait_poll, .end = end_pipe},
	{.name = "select", .wait = wait_select, .end = end_pipe},
	{.name = "epoll_wait", .wait = wait_epoll, .end = end_pipe},
	{.name = "sigsuspend", .wait = wait_pause, .end = end_signal},
	{.name = "sigwaitinfo", .wait = wait_signal, .end = end_signal},
};
#define WAITERS (sizeof(waiters) / sizeof(waiters[0]))

static void *waiter_main(void *argument)
{
	struct waiter *waiter = argument;

	waiter->tid = syscall(SYS_gettid);
	for (;;) {
		int result = waiter->wait(waiter);
		CHECK(result == 0, "%s: %s", waiter->name, result < 0 ? "ended too early" : strerror(result));
		atomic_fetch_add(&waiter->rounds, 1);
	}
	return NULL;
}

static void start(struct waiter *waiter)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1122334455667788};

	MUST(pipe(waiter->pipe));
	waiter->epoll = MUST(epoll_create1(0));
	MUST(epoll_ctl(waiter->epoll, EPOLL_CTL_ADD, waiter->pipe[0], &event));
	MUST_ZERO(pthread_create(&waiter->thread, NULL, waiter_main, waiter));
	while (!waiter->tid)
		usleep(100);
}

int main(void)
{
	static struct waiter plain_pause = {.name = "pause", .wait = wait_plain_pause, .end = end_signal};
	struct sigaction action = {.sa_handler = on_signal};
	sigset_t mask;

	MUST(sigaction(SIGUSR1, &action, NULL));
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	MUST_ZERO(pthread_sigmask(SIG_BLOCK, &mask, NULL));
	for (size_t i = 0; i < WAITERS; i++)
		start(&waiters[i]);
	start(&plain_pause);
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i <= WAITERS; i++) {
			struct waiter *waiter = i < WAITERS ? &waiters[i] : &plain_pause;
			unsigned int rounds = atomic_load(&waiter->rounds);
			if (waiter->end)
				waiter->end(waiter);
			while (atomic_load(&waiter->rounds) == rounds)
				usleep(200);
		}
		harness_report();
	}
	return 0;
}
