/* SPDX-License-Identifier: Apache-2.0 */
#include "inject/ptrace.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { SYSCALL_STOP_SIGNAL = SIGTRAP | 0x80 };

static int classify(int status, int *ret_signal)
{
	if (!WIFSTOPPED(status))
		return THREAD_STOP_GONE;
	int signal = WSTOPSIG(status), event = status >> 16;
	if (event == PTRACE_EVENT_STOP) {
		*ret_signal = signal;
		return signal == SIGTRAP ? THREAD_STOP_TRAP : THREAD_STOP_GROUP;
	}
	if (event) {
		*ret_signal = event;
		return THREAD_STOP_EVENT;
	}
	*ret_signal = signal;
	return signal == SYSCALL_STOP_SIGNAL ? THREAD_STOP_SYSCALL : THREAD_STOP_SIGNAL;
}

int thread_wait(pid_t tid, int *ret_signal)
{
	int status;

	if (waitpid(tid, &status, __WALL) < 0)
		return errno == ECHILD ? THREAD_STOP_GONE : -errno;
	return classify(status, ret_signal);
}

int threads_wait_group_stop(size_t count)
{
	while (count) {
		int status, signal;
		pid_t tid = waitpid(-1, &status, __WALL);
		if (tid < 0 && errno == EINTR)
			continue;
		if (tid < 0)
			return -errno;
		int stop = classify(status, &signal);
		if (stop == THREAD_STOP_GONE)
			return -ESRCH;
		if (stop == THREAD_STOP_GROUP)
			count--;
		else if (ptrace(PTRACE_CONT, tid, 0, stop == THREAD_STOP_SIGNAL ? signal : 0) < 0)
			return -errno;
	}
	return 0;
}

int thread_wait_interrupted(pid_t tid, int *ret_signal)
{
	for (;;) {
		int stop = thread_wait(tid, ret_signal);
		if (stop < 0 || stop == THREAD_STOP_TRAP || stop == THREAD_STOP_GROUP || stop == THREAD_STOP_GONE)
			return stop;
		/* Any stop takes the pending interruption with it: ask again before it runs on. */
		int deliver = stop == THREAD_STOP_SIGNAL ? *ret_signal : 0;
		if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0 || ptrace(PTRACE_CONT, tid, 0, deliver) < 0)
			if (errno != ESRCH)
				return -errno;
	}
}

int thread_start_to_syscall(pid_t tid)
{
	return ptrace(PTRACE_SYSCALL, tid, 0, 0) < 0 ? -errno : 0;
}

int thread_wait_syscall(pid_t tid)
{
	for (;;) {
		int signal, stop = thread_wait(tid, &signal);
		if (stop < 0)
			return stop;
		if (stop == THREAD_STOP_GONE)
			return -ESRCH;
		if (stop == THREAD_STOP_SYSCALL)
			return 0;
		/* Signals are blocked here; what still comes (a stop from outside) must not be lost. */
		if (ptrace(PTRACE_SYSCALL, tid, 0, stop == THREAD_STOP_SIGNAL ? signal : 0) < 0)
			return -errno;
	}
}

int thread_run_to_syscall(pid_t tid)
{
	int error = thread_start_to_syscall(tid);

	return error ? error : thread_wait_syscall(tid);
}
