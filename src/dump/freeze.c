/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stopping a tree that does not want to be stopped.
 *
 * Entry: the tree runs. Exit: every thread of every live descendant of the root is seized and in a ptrace stop, and
 * no task was missed. While we look, tasks fork, create threads, exec and die. A task whose threads all stand can do
 * none of that, so we go round: list threads and children, seize what is new, interrupt all of it, wait for all of
 * it, until a round finds nothing new. Batches keep the cost near the kernel's own (12 ms per 1,000 threads).
 * Dead tasks (zombies) cannot be seized and need not be: they do not change any more.
 */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "base/fd.h"
#include "base/log.h"
#include "dump/stages.h"
#include "inject/ptrace.h"
#include "kernel/proc.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

/* Threads seized in this round, waiting for their stop. */
struct batch {
	struct dump_thread **threads;
	size_t count, capacity;
};

static int fail_seize(struct dump *dump, struct dump_task *task, pid_t tid, int error)
{
	_cleanup_free_ char *status = NULL;
	char path[48];

	snprintf(path, sizeof(path), "task/%d/status", tid);
	const char *tracer = NULL;
	if (error == EPERM && !read_text_at(task->proc_dirfd, path, &status, NULL))
		tracer = proc_field(status, "TracerPid");
	if (tracer && atoi(tracer))
		return fail(&dump->failure, error, "task-traced", dump_task_name(dump, task),
			    "end the debugger or tracer first", "it is traced by process %d", atoi(tracer));
	return fail_errno(&dump->failure, error, "task-seize", dump_task_name(dump, task),
			  error == EPERM ? "run criu as root or with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE" : NULL,
			  "cannot stop thread %d", tid);
}

/* Returns 1 if the thread was seized, 0 if it is gone, or a failure. */
static int seize_thread(struct dump *dump, struct dump_task *task, pid_t tid)
{
	if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP) < 0 &&
	    (errno == ESRCH || ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD) < 0)) {
		struct proc_stat stat;
		char path[48];
		int error = errno;

		if (error == ESRCH)
			return 0;
		/* A thread that died a moment ago still has its directory, and ptrace says EPERM. */
		snprintf(path, sizeof(path), "task/%d/stat", tid);
		if (proc_read_stat(task->proc_dirfd, path, &stat) < 0 || stat.state == 'Z' || stat.state == 'X')
			return 0;
		return fail_seize(dump, task, tid, error);
	}
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0 && errno != ESRCH)
		return fail_seize(dump, task, tid, errno);
	return 1;
}

static bool has_thread(const struct dump_task *task, pid_t tid)
{
	for (size_t i = 0; i < task->thread_count; i++)
		if (task->threads[i].tid == tid)
			return true;
	return false;
}

/*
 * Seizes the threads of @task that are not seized yet. Returns the number of new ones, or a failure. The kernel lists
 * threads in the order of their creation, so the known ones are nearly always a prefix.
 */
static int seize_new_threads(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ int *tids = NULL;
	size_t count, known = task->thread_count;
	int new_count = 0;
	int error = proc_list_numbers(task->proc_dirfd, "task", &tids, &count);

	if (error == -ESRCH)
		return 0;
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-threads", dump_task_name(dump, task), NULL,
				  "cannot list its threads");
	if (count == known)
		return 0;
	task->threads = xrealloc_array(task->threads, known + count, sizeof(*task->threads));
	for (size_t i = 0; i < count; i++) {
		if (known && has_thread(task, tids[i]))
			continue;
		int seized = seize_thread(dump, task, tids[i]);
		if (seized < 0)
			return seized;
		if (!seized)
			continue;
		task->threads[task->thread_count++] = (struct dump_thread){.tid = tids[i], .seized = true};
		new_count++;
	}
	return new_count;
}

static int wait_threads(struct dump *dump, struct dump_task *task, size_t first)
{
	for (size_t i = first; i < task->thread_count; i++) {
		struct dump_thread *thread = &task->threads[i];
		int stop = thread_wait_interrupted(thread->tid, &thread->stop_signal);
		if (stop == -EINTR)
			return fail(&dump->failure, ETIMEDOUT, "freeze-timeout", dump_task_name(dump, task),
				    "it may hang in the kernel (state D); try again or raise --timeout",
				    "thread %d did not stop in %u seconds", thread->tid,
				    dump->options->timeout_seconds);
		if (stop < 0)
			return fail_errno(&dump->failure, stop, "task-seize", dump_task_name(dump, task), NULL,
					  "cannot wait for thread %d", thread->tid);
		if (stop == THREAD_STOP_GONE) {
			thread->seized = false;
			thread->tid = 0;
		} else if (stop == THREAD_STOP_TRAP) {
			thread->stop_signal = 0;
		}
	}
	size_t kept = first;
	for (size_t i = first; i < task->thread_count; i++)
		if (task->threads[i].tid)
			task->threads[kept++] = task->threads[i];
	task->thread_count = kept;
	return 0;
}

static int fill_task(struct dump *dump, struct dump_task *task, const struct proc_stat *stat)
{
	task->ppid = stat->ppid;
	task->pgid = stat->pgrp;
	task->sid = stat->session;
	task->start_time = stat->start_time;
	task->exit_code = stat->exit_code;
	snprintf(task->comm, sizeof(task->comm), "%s", stat->comm);
	return 0;
}

/* Adds a process that exists now. Returns 1, 0 if it is gone meanwhile, or a failure. */
static int add_task(struct dump *dump, pid_t pid, struct dump_task *parent)
{
	struct dump_task *task = arena_alloc(&dump->arena, sizeof(*task));
	struct proc_stat stat;

	task->pid = pid;
	task->parent = parent;
	task->pidfd = -1;
	task->proc_dirfd = proc_open(pid);
	if (task->proc_dirfd == -ESRCH)
		return 0;
	if (task->proc_dirfd < 0)
		return fail_errno(&dump->failure, task->proc_dirfd, "task-proc", NULL, NULL, "cannot open /proc/%d",
				  pid);
	int error = proc_read_stat(task->proc_dirfd, "stat", &stat);
	if (error < 0 || stat.state == 'X') {
		close(task->proc_dirfd);
		return 0;
	}
	fill_task(dump, task, &stat);
	task->state = stat.state == 'Z' ? TASK_STATE_DEAD : TASK_STATE_ALIVE;
	task->pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (task->pidfd < 0 && task->state != TASK_STATE_DEAD)
		return fail_errno(&dump->failure, errno, "task-pidfd", dump_task_name(dump, task), NULL, "pidfd_open");
	dump->tasks = xrealloc_array(dump->tasks, dump->task_count + 1, sizeof(*dump->tasks));
	dump->tasks[dump->task_count++] = task;
	return 1;
}

static bool has_task(const struct dump *dump, size_t first, pid_t pid)
{
	for (size_t i = first; i < dump->task_count; i++)
		if (dump->tasks[i]->pid == pid)
			return true;
	return false;
}

/* The children of the threads of @task that are not in the tree yet. Returns how many, or a failure. */
static int add_children(struct dump *dump, struct dump_task *task, size_t children_begin)
{
	_cleanup_free_ pid_t *children = NULL;
	size_t count = 0, capacity = 0;
	int added = 0;

	for (size_t i = 0; i < task->thread_count; i++) {
		int error = proc_read_children(task->proc_dirfd, task->threads[i].tid, &children, &count, &capacity);
		if (error < 0 && error != -ESRCH)
			return fail_errno(&dump->failure, error, "task-children", dump_task_name(dump, task),
					  "the kernel needs CONFIG_PROC_CHILDREN", "cannot list its children");
	}
	for (size_t i = 0; i < count; i++) {
		if (children_begin < dump->task_count && has_task(dump, children_begin, children[i]))
			continue;
		int result = add_task(dump, children[i], task);
		if (result < 0)
			return result;
		added += result;
	}
	return added;
}

/* Stops one process completely: rounds over its threads until no new one appears. */
static int stop_task(struct dump *dump, struct dump_task *task)
{
	for (;;) {
		size_t first = task->thread_count;
		int count = seize_new_threads(dump, task);
		if (count < 0)
			return count;
		if (!count)
			return 0;
		int error = wait_threads(dump, task, first);
		if (error < 0)
			return error;
	}
}

/*
 * One level of the tree at a time: all its processes are interrupted before the first is waited for. A process whose
 * threads all stand cannot get new children, so its children are read once.
 */
static int stop_level(struct dump *dump, size_t begin, size_t end)
{
	for (size_t i = begin; i < end; i++)
		if (dump->tasks[i]->state != TASK_STATE_DEAD) {
			int count = seize_new_threads(dump, dump->tasks[i]);
			if (count < 0)
				return count;
		}
	for (size_t i = begin; i < end; i++) {
		struct dump_task *task = dump->tasks[i];
		if (task->state == TASK_STATE_DEAD)
			continue;
		int error = wait_threads(dump, task, 0);
		if (!error)
			error = stop_task(dump, task);
		if (error < 0)
			return error;
	}
	return 0;
}

/* What changed while the task was being stopped: it may have died, or its leader alone. */
static int settle_task(struct dump *dump, struct dump_task *task)
{
	struct proc_stat stat;
	int error = proc_read_stat(task->proc_dirfd, "stat", &stat);

	if (error < 0)
		return fail(&dump->failure, ESRCH, "task-vanished", dump_task_name(dump, task), "try again",
			    "it ended while it was being stopped");
	fill_task(dump, task, &stat);
	for (size_t i = 0; i < task->thread_count; i++)
		task->threads[i].task = task;
	if (stat.state == 'Z') {
		if (task->thread_count)
			return fail(&dump->failure, EOPNOTSUPP, "task-leader-dead", dump_task_name(dump, task), NULL,
				    "its main thread has ended while %zu other threads live", task->thread_count);
		task->state = TASK_STATE_DEAD;
		return 0;
	}
	for (size_t i = 0; i < task->thread_count; i++)
		if (task->threads[i].tid == task->pid && i) {
			struct dump_thread leader = task->threads[i];
			task->threads[i] = task->threads[0];
			task->threads[0] = leader;
		}
	if (!task->thread_count || task->threads[0].tid != task->pid)
		return fail(&dump->failure, ESRCH, "task-vanished", dump_task_name(dump, task), "try again",
			    "its main thread ended while it was being stopped");
	if (task->threads[0].stop_signal)
		task->state = TASK_STATE_STOPPED;
	return 0;
}

/*
 * Tasks that died after they were listed and were reaped by their parent before it stood are dropped: the parent is
 * stopped now, so whoever is still there stays.
 */
static void drop_vanished(struct dump *dump, size_t begin)
{
	size_t kept = begin;

	for (size_t i = begin; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		struct proc_stat stat;
		if (!task->thread_count && proc_read_stat(task->proc_dirfd, "stat", &stat) < 0) {
			close(task->proc_dirfd);
			close_fd_pointer(&task->pidfd);
			continue;
		}
		dump->tasks[kept++] = task;
	}
	dump->task_count = kept;
}

static void on_timeout(int signal)
{
}

static int freeze_all(struct dump *dump)
{
	size_t begin = 0;
	int result = add_task(dump, dump->options->pid, NULL);

	if (result < 0)
		return result;
	if (!result || dump->tasks[0]->state == TASK_STATE_DEAD)
		return fail(&dump->failure, ESRCH, "pid-missing", NULL, NULL, "there is no live process %d",
			    dump->options->pid);
	while (begin < dump->task_count) {
		size_t end = dump->task_count;
		result = stop_level(dump, begin, end);
		if (result < 0)
			return result;
		drop_vanished(dump, begin);
		end = dump->task_count;
		for (size_t i = begin; i < end; i++) {
			result = settle_task(dump, dump->tasks[i]);
			if (!result && dump->tasks[i]->state != TASK_STATE_DEAD)
				result = add_children(dump, dump->tasks[i], end);
			if (result < 0)
				return result;
		}
		begin = end;
	}
	return 0;
}

int freeze_tree(struct dump *dump)
{
	/* Without SA_RESTART: a wait for a thread that never stops ends when the alarm comes. */
	struct sigaction action = {.sa_handler = on_timeout}, previous;

	sigaction(SIGALRM, &action, &previous);
	alarm(dump->options->timeout_seconds);
	int error = freeze_all(dump);
	alarm(0);
	sigaction(SIGALRM, &previous, NULL);
	if (error < 0)
		thaw_tree(dump);
	return error;
}

void thaw_tree(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++) {
			struct dump_thread *thread = &dump->tasks[i]->threads[t];
			if (thread->seized && ptrace(PTRACE_DETACH, thread->tid, 0, 0) < 0 && errno == ESRCH) {
				/* Still on its way to the stop (the freeze failed): wait for it, then let it go. */
				int signal;
				if (thread_wait_interrupted(thread->tid, &signal) != THREAD_STOP_GONE)
					ptrace(PTRACE_DETACH, thread->tid, 0, 0);
			}
			thread->seized = false;
		}
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++)
			if (dump->tasks[i]->threads[t].stop_signal)
				proc_await_stop(dump->tasks[i]->pid, dump->tasks[i]->threads[t].tid);
}
