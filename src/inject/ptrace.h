/* SPDX-License-Identifier: Apache-2.0 */
/* Stops of seized threads. All functions are for the one thread of the tool that seized them. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/fail.h"

enum thread_stop {
	THREAD_STOP_TRAP,    /* PTRACE_INTERRUPT took effect */
	THREAD_STOP_GROUP,   /* it is stopped by a signal (SIGSTOP …), *ret_signal */
	THREAD_STOP_SYSCALL, /* entry or exit of a system call */
	THREAD_STOP_SIGNAL,  /* about to get *ret_signal */
	THREAD_STOP_EVENT,   /* another PTRACE_EVENT_*, *ret_signal is the event */
	THREAD_STOP_GONE,    /* it ended */
};

/* Waits for the next stop of @tid. Returns the stop, or -errno (-EINTR when a timeout signal came). */
int thread_wait(pid_t tid, int *ret_signal);
/*
 * Waits until an interrupted thread stands. A signal on its way is delivered to it first, as if the interruption had
 * come a moment later. Returns THREAD_STOP_TRAP, _GROUP (*ret_signal) or _GONE, or -errno.
 */
int thread_wait_interrupted(pid_t tid, int *ret_signal);
/* Runs the thread to its next system call stop. Returns 0 or -errno (-ESRCH: it ended). */
int thread_run_to_syscall(pid_t tid);
/* The same in two halves, for many threads at once. */
int thread_start_to_syscall(pid_t tid);
int thread_wait_syscall(pid_t tid);

/*
 * Waits until @count seized threads, that were sent on with a stop signal pending for their processes, have entered
 * the group stop. Any of them may be the one that takes the signal first, so they are waited for together; the
 * calling thread must have no other children that change state. Returns 0 or -errno (-ESRCH: one has ended).
 */
int threads_wait_group_stop(size_t count);
