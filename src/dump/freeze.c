/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stopping a tree that does not want to be stopped.
 *
 * Entry: the tree runs. Exit: every thread of every live descendant of the root is seized and in a ptrace stop, and
 * no task was missed. While we look, tasks fork, create threads, exec and die. A task whose threads all stand can do
 * none of that, so we go round: seize what is new, interrupt all of it, wait for all of it, until as many threads stand
 * as the kernel counts. The first round is of the leaders, as most processes have no other thread: only where the count
 * differs is the directory of threads read, which costs 8 us for each. Batches keep the cost near the kernel's own
 * (12 ms per 1,000 threads).
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
#include "base/parallel.h"
#include "dump/stages.h"
#include "inject/ptrace.h"
#include "kernel/proc.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

enum { THREADS_WORTH_A_READER = 64 };

/* For failures: a task that does not stand yet has no name. */
static const char *name_of(struct dump *dump, struct dump_task *task)
{
	struct proc_stat stat;

	if (!task->comm[0] && !proc_read_stat(task->proc_dirfd, "stat", &stat))
		snprintf(task->comm, sizeof(task->comm), "%s", stat.comm);
	return dump_task_name(dump, task);
}

static int fail_seize(struct dump *dump, struct dump_task *task, pid_t tid, int error)
{
	_cleanup_free_ char *status = NULL;
	char path[48];

	snprintf(path, sizeof(path), "task/%d/status", tid);
	const char *tracer = NULL;
	if (error == EPERM && !read_text_at(task->proc_dirfd, path, &status, NULL))
		tracer = proc_field(status, "TracerPid");
	if (tracer && atoi(tracer))
		return fail(&dump->failure, error, "task-traced", name_of(dump, task),
			    "end the debugger or tracer first", "it is traced by process %d", atoi(tracer));
	return fail_errno(&dump->failure, error, "task-seize", name_of(dump, task),
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

/* Returns 1 if the thread was seized and added, 0 if it is gone, or a failure. @task has room for it. */
static int add_thread(struct dump *dump, struct dump_task *task, pid_t tid)
{
	int seized = seize_thread(dump, task, tid);

	if (seized == 1)
		task->threads[task->thread_count++] = (struct dump_thread){.tid = tid, .seized = true};
	return seized;
}

static bool has_thread(const struct dump_task *task, size_t known, pid_t tid)
{
	for (size_t i = 0; i < known; i++)
		if (task->threads[i].tid == tid)
			return true;
	return false;
}

/* Seizes the threads of @task that are not seized yet. Returns the number of new ones, or a failure. */
static int seize_new_threads(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ int *tids = NULL;
	size_t count, known = task->thread_count;
	int new_count = 0;
	int error = proc_list_numbers(task->proc_dirfd, "task", &tids, &count);

	if (error == -ESRCH)
		return 0;
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-threads", name_of(dump, task), NULL,
				  "cannot list its threads");
	task->threads = xrealloc_array(task->threads, known + count, sizeof(*task->threads));
	for (size_t i = 0; i < count; i++) {
		int added = has_thread(task, known, tids[i]) ? 0 : add_thread(dump, task, tids[i]);
		if (added < 0)
			return added;
		new_count += added;
	}
	return new_count;
}

static int wait_threads(struct dump *dump, struct dump_task *task, size_t first)
{
	for (size_t i = first; i < task->thread_count; i++) {
		struct dump_thread *thread = &task->threads[i];
		int stop = thread_wait_interrupted(thread->tid, &thread->stop_signal);
		if (stop == -EINTR)
			return fail(&dump->failure, ETIMEDOUT, "freeze-timeout", name_of(dump, task),
				    "it may hang in the kernel (state D); try again or raise --timeout",
				    "thread %d did not stop in %u seconds", thread->tid,
				    dump->options->timeout_seconds);
		if (stop < 0)
			return fail_errno(&dump->failure, stop, "task-seize", name_of(dump, task), NULL,
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

static void fill_task(struct dump *dump, struct dump_task *task, const struct proc_stat *stat)
{
	task->stat = arena_memdup(&dump->arena, stat, sizeof(*stat));
	task->ppid = stat->ppid;
	task->pgid = stat->pgrp;
	task->sid = stat->session;
	task->start_time = stat->start_time;
	task->exit_code = stat->exit_code;
	snprintf(task->comm, sizeof(task->comm), "%s", stat->comm);
}

/*
 * Adds a process that exists now, dead or alive: that is seen when what lives of it stands. Returns 1, 0 if it is gone
 * meanwhile, or a failure.
 */
static int add_task(struct dump *dump, pid_t pid, struct dump_task *parent)
{
	struct dump_task *task = arena_alloc(&dump->arena, sizeof(*task));

	task->pid = pid;
	task->parent = parent;
	task->pidfd = -1;
	task->proc_dirfd = proc_open(pid);
	if (task->proc_dirfd == -ESRCH)
		return 0;
	if (task->proc_dirfd < 0)
		return fail_errno(&dump->failure, task->proc_dirfd, "task-proc", NULL, NULL, "cannot open /proc/%d",
				  pid);
	task->state = TASK_STATE_ALIVE;
	task->pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (task->pidfd < 0) {
		int error = errno;
		if (error != ESRCH)
			fail_errno(&dump->failure, error, "task-pidfd", name_of(dump, task), NULL, "pidfd_open");
		close(task->proc_dirfd);
		return error == ESRCH ? 0 : -error;
	}
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

/* What each thread of a task has forked, by index of the thread. */
struct children_reading {
	const struct dump_task *task;
	struct children {
		pid_t *pids;
		size_t count, capacity;
		int error;
	} * of_threads;
};

static void read_children(void *context, size_t index)
{
	const struct children_reading *reading = context;
	struct children *children = &reading->of_threads[index];

	children->error = proc_read_children(reading->task->proc_dirfd, reading->task->threads[index].tid,
					     &children->pids, &children->count, &children->capacity);
}

static int add_children_of_thread(struct dump *dump, struct dump_task *task, const struct children *children,
				  size_t children_begin)
{
	if (children->error < 0 && children->error != -ESRCH)
		return fail_errno(&dump->failure, children->error, "task-children", dump_task_name(dump, task),
				  "the kernel needs CONFIG_PROC_CHILDREN", "cannot list its children");
	for (size_t i = 0; i < children->count; i++) {
		if (children_begin < dump->task_count && has_task(dump, children_begin, children->pids[i]))
			continue;
		int result = add_task(dump, children->pids[i], task);
		if (result < 0)
			return result;
	}
	return 0;
}

/* The children of the threads of @task that are not in the tree yet. */
static int add_children(struct dump *dump, struct dump_task *task, size_t children_begin)
{
	_cleanup_free_ struct children *of_threads = xcalloc(task->thread_count, sizeof(*of_threads));
	struct children_reading reading = {task, of_threads};
	int error = 0;

	parallel_for(task->thread_count, THREADS_WORTH_A_READER, read_children, &reading);
	for (size_t i = 0; i < task->thread_count; i++) {
		if (!error)
			error = add_children_of_thread(dump, task, &of_threads[i], children_begin);
		free(of_threads[i].pids);
	}
	return error;
}

/*
 * Rounds over the threads of a process whose known ones stand, until there is no other. What the kernel counts are also
 * threads that end just now: a round that finds nothing to seize is the last. If all are known but the leader runs, it
 * is another: a thread has executed a program and taken the leader's number, and nobody traces it. Returns -ESRCH
 * without a failure if the process has ended and was reaped.
 */
static int stop_others(struct dump *dump, struct dump_task *task, struct proc_stat *ret_stat)
{
	for (;;) {
		int error = proc_read_stat(task->proc_dirfd, "stat", ret_stat);
		if (error < 0 || ret_stat->state == 'X')
			return -ESRCH;
		if (ret_stat->thread_count == task->thread_count) {
			if (strchr("tZ", ret_stat->state))
				return 0;
			task->thread_count = 0;
		}
		size_t first = task->thread_count;
		int count = seize_new_threads(dump, task);
		if (count <= 0)
			return count;
		error = wait_threads(dump, task, first);
		if (error < 0)
			return error;
	}
}

/*
 * The leaders of one level of the tree, all of them interrupted before the first is waited for. Children that are
 * dead have none that could be seized.
 */
static int stop_leaders(struct dump *dump, size_t begin, size_t end)
{
	for (size_t i = begin; i < end; i++) {
		struct dump_task *task = dump->tasks[i];
		task->threads = xcalloc(1, sizeof(*task->threads));
		int added = add_thread(dump, task, task->pid);
		if (added < 0)
			return added;
	}
	for (size_t i = begin; i < end; i++) {
		int error = wait_threads(dump, dump->tasks[i], 0);
		if (error < 0)
			return error;
	}
	return 0;
}

/* What it was found to be: it may have died, or its leader alone. */
static int settle_task(struct dump *dump, struct dump_task *task, const struct proc_stat *stat)
{
	fill_task(dump, task, stat);
	for (size_t i = 0; i < task->thread_count; i++)
		task->threads[i].task = task;
	if (stat->state == 'Z') {
		if (task->thread_count)
			return fail(&dump->failure, EOPNOTSUPP, "task-leader-dead", dump_task_name(dump, task), NULL,
				    "its main thread has ended while %zu other threads live", task->thread_count);
		task->state = TASK_STATE_DEAD;
		return 0;
	}
	if (!task->thread_count || task->threads[0].tid != task->pid)
		return fail(&dump->failure, ESRCH, "task-vanished", dump_task_name(dump, task), "try again",
			    "its main thread ended while it was being stopped");
	if (task->threads[0].stop_signal)
		task->state = TASK_STATE_STOPPED;
	return 0;
}

/* Returns 1 if @task stands or is dead, 0 if it was reaped, or a failure. */
static int stop_task(struct dump *dump, struct dump_task *task)
{
	struct proc_stat stat;
	int error = stop_others(dump, task, &stat);

	if (error == -ESRCH && !failure_is_set(&dump->failure)) {
		if (!task->thread_count)
			return 0;
		return fail(&dump->failure, ESRCH, "task-vanished", dump_task_name(dump, task), "try again",
			    "it ended while it was being stopped");
	}
	if (!error)
		error = settle_task(dump, task, &stat);
	return error ? error : 1;
}

/*
 * One level of the tree. Tasks that died after they were listed and were reaped by their parent before it stood are
 * dropped: the parent is stopped now, so whoever is still there stays.
 */
static int stop_level(struct dump *dump, size_t begin)
{
	size_t end = dump->task_count, kept = begin;
	int result = stop_leaders(dump, begin, end);

	for (size_t i = begin; i < end; i++) {
		struct dump_task *task = dump->tasks[i];
		if (result >= 0)
			result = stop_task(dump, task);
		if (result) {
			dump->tasks[kept++] = task;
			continue;
		}
		free(task->threads);
		close_fd_pointer(&task->proc_dirfd);
		close_fd_pointer(&task->pidfd);
	}
	dump->task_count = kept;
	return result < 0 ? result : 0;
}

static void on_timeout(int signal)
{
}

/*
 * A wait for a thread that never stops ends when the time is over: the handler is without SA_RESTART. It comes again
 * and again, as the first signal may fall between two waits.
 */
static void begin_timeout(unsigned seconds, struct sigaction *ret_previous)
{
	const struct sigaction action = {.sa_handler = on_timeout};
	const struct itimerval timer = {.it_value.tv_sec = seconds, .it_interval.tv_usec = 10 * 1000};

	sigaction(SIGALRM, &action, ret_previous);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static void end_timeout(const struct sigaction *previous)
{
	const struct itimerval none = {};

	setitimer(ITIMER_REAL, &none, NULL);
	sigaction(SIGALRM, previous, NULL);
}

static int freeze_all(struct dump *dump)
{
	size_t begin = 0;
	int result = add_task(dump, dump->options->pid, NULL);

	if (result < 0)
		return result;
	while (begin < dump->task_count) {
		result = stop_level(dump, begin);
		if (result < 0)
			return result;
		/* A process whose threads all stand cannot get new children, so its children are read once. */
		size_t end = dump->task_count;
		for (size_t i = begin; i < end; i++) {
			result = dump->tasks[i]->state == TASK_STATE_DEAD ? 0 : add_children(dump, dump->tasks[i], end);
			if (result < 0)
				return result;
		}
		begin = end;
	}
	if (!dump->task_count || dump->tasks[0]->state == TASK_STATE_DEAD)
		return fail(&dump->failure, ESRCH, "pid-missing", NULL, NULL, "there is no live process %d",
			    dump->options->pid);
	return 0;
}

int freeze_tree(struct dump *dump)
{
	struct sigaction previous;

	begin_timeout(dump->options->timeout_seconds, &previous);
	int error = freeze_all(dump);
	end_timeout(&previous);
	if (error < 0)
		thaw_tree(dump);
	return error;
}

/*
 * Threads that were still on their way to the stop when the freeze failed, and cannot be detached before they are
 * there. One that hangs in the kernel may never be: it is left as it is, and the end of criu lets it go.
 */
static void detach_late(struct dump *dump)
{
	enum { PATIENCE_SECONDS = 1 };
	struct sigaction previous;
	int signal;

	begin_timeout(PATIENCE_SECONDS, &previous);
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++) {
			struct dump_thread *thread = &dump->tasks[i]->threads[t];
			if (!thread->seized)
				continue;
			int stop = thread_wait_interrupted(thread->tid, &signal);
			if (stop >= 0 && stop != THREAD_STOP_GONE)
				ptrace(PTRACE_DETACH, thread->tid, 0, 0);
			thread->seized = false;
		}
	end_timeout(&previous);
}

void thaw_tree(struct dump *dump)
{
	bool late = false;

	/* Those that stand go at once, whatever becomes of the others. */
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++) {
			struct dump_thread *thread = &dump->tasks[i]->threads[t];
			if (!thread->seized)
				continue;
			thread->seized = ptrace(PTRACE_DETACH, thread->tid, 0, 0) < 0 && errno == ESRCH;
			late |= thread->seized;
		}
	if (late)
		detach_late(dump);
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++)
			if (dump->tasks[i]->threads[t].stop_signal)
				proc_await_stop(dump->tasks[i]->pid, dump->tasks[i]->threads[t].tid);
}
