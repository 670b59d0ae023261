/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pending signals: of the process and of two threads, ordinary ones and several real-time ones in order, with all of
 * their siginfo; of a child that ended; actions of every sort, among them a signal that is blocked, ignored, pending.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define QUEUED 40

static sem_t thread_check, thread_checked;
static pid_t thread_tid, dead_child;

static void handler(int signal)
{
}

static void handler_with_info(int signal, siginfo_t *info, void *context)
{
}

static void queue(pid_t tid, int signal, int code, int value)
{
	siginfo_t info = {.si_signo = signal, .si_code = code, .si_value.sival_int = value};

	info.si_pid = 4242;
	info.si_uid = 17;
	if (tid)
		MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, &info));
	else
		MUST(syscall(SYS_rt_sigqueueinfo, getpid(), signal, &info));
}

/* What is due next for @signal must be this; it is taken away. */
static void expect(int signal, int code, int value)
{
	const struct timespec at_once = {};
	sigset_t set;
	siginfo_t info = {};

	sigemptyset(&set);
	sigaddset(&set, signal);
	int got = sigtimedwait(&set, &info, &at_once);
	CHECK(got == signal && info.si_code == code && info.si_pid == 4242 && info.si_uid == 17 &&
		      info.si_value.sival_int == value,
	      "signal %d code %d value %d: got %d code %d value %d pid %d (%m)", signal, code, value, got, info.si_code,
	      info.si_value.sival_int, info.si_pid);
}

static void expect_nothing(void)
{
	const struct timespec at_once = {};
	sigset_t all;

	sigfillset(&all);
	int got = sigtimedwait(&all, NULL, &at_once);
	CHECK(got < 0 && errno == EAGAIN, "signal %d too many", got);
}

/* Sent to all of the process and taken by the main thread; later ones have lower numbers. */
static void queue_shared(void)
{
	for (int i = 0; i < QUEUED; i++)
		queue(0, SIGRTMIN + 3, SI_QUEUE, 100 + i);
	queue(0, SIGRTMIN + 1, SI_MESGQ, 7);
	queue(0, SIGUSR1, SI_QUEUE, 8);
	queue(0, SIGWINCH, SI_QUEUE, 9);
}

static void take_shared(void)
{
	for (int i = 0; i < QUEUED; i++)
		expect(SIGRTMIN + 3, SI_QUEUE, 100 + i);
	expect(SIGRTMIN + 1, SI_MESGQ, 7);
	expect(SIGUSR1, SI_QUEUE, 8);
	expect(SIGWINCH, SI_QUEUE, 9);
}

static void queue_private(pid_t tid, int base)
{
	queue(tid, SIGUSR2, SI_QUEUE, base);
	queue(tid, SIGRTMIN + 5, SI_QUEUE, base + 1);
	queue(tid, SIGRTMIN + 5, SI_ASYNCIO, base + 2);
	/* As if the kernel had sent it: only a thread itself can do that. */
	if (tid == syscall(SYS_gettid))
		queue(tid, SIGSEGV, SI_KERNEL, base + 3);
	queue(tid, SIGURG, SI_QUEUE, base + 4);
}

static void take_private(int base)
{
	expect(SIGUSR2, SI_QUEUE, base);
	expect(SIGRTMIN + 5, SI_QUEUE, base + 1);
	expect(SIGRTMIN + 5, SI_ASYNCIO, base + 2);
	expect(SIGSEGV, SI_KERNEL, base + 3);
	expect(SIGURG, SI_QUEUE, base + 4);
}

static void *other_thread(void *argument)
{
	thread_tid = syscall(SYS_gettid);
	queue_private(thread_tid, 500);
	sem_post(&thread_checked);
	for (;;) {
		while (sem_wait(&thread_check) < 0)
			;
		take_private(500);
		queue_private(thread_tid, 500);
		sem_post(&thread_checked);
	}
	return NULL;
}

static void set_actions(void)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_NODEFER};

	sigaddset(&action.sa_mask, SIGIO);
	sigaddset(&action.sa_mask, SIGRTMAX);
	MUST(sigaction(SIGHUP, &action, NULL));
	action = (struct sigaction){.sa_sigaction = handler_with_info,
				    .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND};
	MUST(sigaction(SIGRTMAX, &action, NULL));
	MUST(sigaction(SIGRTMIN, &action, NULL));
	action = (struct sigaction){.sa_handler = SIG_IGN};
	MUST(sigaction(SIGWINCH, &action, NULL));
	MUST(sigaction(SIGPIPE, &action, NULL));
	action = (struct sigaction){.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP};
	MUST(sigaction(SIGCHLD, &action, NULL));
}

static void check_actions(void)
{
	struct sigaction action;

	CHECK(!sigaction(SIGHUP, NULL, &action) && action.sa_handler == handler);
	CHECK((action.sa_flags & (SA_RESTART | SA_NODEFER | SA_SIGINFO)) == (SA_RESTART | SA_NODEFER));
	CHECK(sigismember(&action.sa_mask, SIGIO) && sigismember(&action.sa_mask, SIGRTMAX) &&
	      !sigismember(&action.sa_mask, SIGUSR1));
	for (int signal = SIGRTMIN; signal <= SIGRTMAX; signal += SIGRTMAX - SIGRTMIN)
		CHECK(!sigaction(signal, NULL, &action) && action.sa_sigaction == handler_with_info &&
		      (action.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_RESETHAND)) ==
			      (int)(SA_SIGINFO | SA_ONSTACK | SA_RESETHAND));
	CHECK(!sigaction(SIGWINCH, NULL, &action) && action.sa_handler == SIG_IGN);
	CHECK(!sigaction(SIGPIPE, NULL, &action) && action.sa_handler == SIG_IGN);
	CHECK(!sigaction(SIGCHLD, NULL, &action) && action.sa_handler == SIG_DFL && action.sa_flags & SA_NOCLDSTOP);
	CHECK(!sigaction(SIGTERM, NULL, &action) && action.sa_handler == SIG_DFL);
}

/* The child that ended: its signal waits, and so does its status. Both are there again after the check. */
static void check_dead_child(void)
{
	const struct timespec at_once = {};
	sigset_t set;
	siginfo_t info = {}, state = {};

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	int got = sigtimedwait(&set, &info, &at_once);
	CHECK(got == SIGCHLD && info.si_code == CLD_EXITED && info.si_status == 37 && info.si_pid == dead_child,
	      "SIGCHLD: got %d code %d status %d pid %d", got, info.si_code, info.si_status, info.si_pid);
	CHECK(!waitid(P_PID, dead_child, &state, WEXITED | WNOWAIT) && state.si_status == 37);
	info.si_signo = SIGCHLD;
	CHECK(!syscall(SYS_rt_sigqueueinfo, getpid(), SIGCHLD, &info));
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

int main(void)
{
	pthread_t thread;
	sigset_t all;
	siginfo_t state;

	sigfillset(&all);
	MUST(sigprocmask(SIG_SETMASK, &all, NULL));
	set_actions();
	sem_init(&thread_check, 0, 0);
	sem_init(&thread_checked, 0, 0);
	MUST_ZERO(pthread_create(&thread, NULL, other_thread, NULL));
	wait_for(&thread_checked);
	dead_child = MUST(fork());
	if (!dead_child)
		_exit(37);
	MUST(waitid(P_PID, dead_child, &state, WEXITED | WNOWAIT));
	queue_shared();
	queue_private(getpid(), 300);
	harness_ready();
	while (harness_wait_check()) {
		check_actions();
		sem_post(&thread_check);
		wait_for(&thread_checked);
		check_dead_child();
		take_private(300);
		take_shared();
		siginfo_t child = {};
		const struct timespec at_once = {};
		sigset_t only_child;
		sigemptyset(&only_child);
		sigaddset(&only_child, SIGCHLD);
		CHECK(sigtimedwait(&only_child, &child, &at_once) == SIGCHLD);
		expect_nothing();
		syscall(SYS_rt_sigqueueinfo, getpid(), SIGCHLD, &child);
		queue_shared();
		queue_private(getpid(), 300);
		harness_report();
	}
	return 0;
}
