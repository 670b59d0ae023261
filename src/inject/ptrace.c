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

static int wait_group_stop(pid_t tid)
{
	for (;;) {
		int signal, stop = thread_wait(tid, &signal);
		if (stop < 0 || stop == THREAD_STOP_GROUP)
			return stop < 0 ? stop : 0;
		if (stop == THREAD_STOP_GONE)
			return -ESRCH;
		if (ptrace(PTRACE_CONT, tid, 0, stop == THREAD_STOP_SIGNAL ? signal : 0) < 0)
			return -errno;
	}
}

int threads_stop_group(pid_t pid, const pid_t *tids, size_t count)
{
	if (tgkill(pid, tids[0], SIGSTOP) < 0 || ptrace(PTRACE_CONT, tids[0], 0, 0) < 0)
		return -errno;
	int error = wait_group_stop(tids[0]);
	for (size_t i = 1; i < count && !error; i++)
		if (ptrace(PTRACE_CONT, tids[i], 0, 0) < 0)
			error = -errno;
	for (size_t i = 1; i < count && !error; i++)
		error = wait_group_stop(tids[i]);
	return error;
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
