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
 * Stops a process whose threads all stand in ptrace stops, as SIGSTOP does, without any of them running one
 * instruction: the leader goes on first, with the signal; when it has reported its stop, the kernel has told all others
 * to stop, and they go on only to do so. @tids[0] is the leader. Returns 0 or -errno.
 */
int threads_stop_group(pid_t pid, const pid_t *tids, size_t count);
