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

enum { WORTH_A_READER = 64 }; /* threads or processes */

/* What a thread has forked. */
struct children {
	pid_t *pids;
	size_t count, capacity;
	int error;
};

/* What is read of a process when its leader stands. */
struct look {
	int error;
	struct proc_stat stat;
	bool has_children; /* it has one thread only, and these are its children */
	struct children children;
};

/* Processes of the same depth in the tree. They are opened and looked at side by side. */
struct level {
	struct dump *dump;
	size_t begin, end;  /* in the tree */
	struct look *looks; /* by index in the level */
};

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

/* Adds a process that was listed; whether it is still there shows when its level is opened. */
static void add_task(struct dump *dump, pid_t pid, struct dump_task *parent)
{
	struct dump_task *task = arena_alloc(&dump->arena, sizeof(*task));

	task->pid = pid;
	task->parent = parent;
	task->pidfd = task->proc_dirfd = -1;
	task->state = TASK_STATE_ALIVE;
	ARRAY_GROW(dump->tasks, dump->task_count, dump->task_capacity);
	dump->tasks[dump->task_count++] = task;
}

static bool has_task(const struct dump *dump, size_t first, pid_t pid)
{
	for (size_t i = first; i < dump->task_count; i++)
		if (dump->tasks[i]->pid == pid)
			return true;
	return false;
}

static void read_children(const struct dump_task *task, pid_t tid, struct children *children)
{
	children->error =
		proc_read_children(task->proc_dirfd, tid, &children->pids, &children->count, &children->capacity);
}

struct children_reading {
	const struct dump_task *task;
	struct children *of_threads; /* by index of the thread */
};

static void read_children_of_thread(void *context, size_t index)
{
	const struct children_reading *reading = context;

	read_children(reading->task, reading->task->threads[index].tid, &reading->of_threads[index]);
}

static int add_children_of_thread(struct dump *dump, struct dump_task *task, const struct children *children,
				  size_t children_begin)
{
	if (children->error < 0 && children->error != -ESRCH)
		return fail_errno(&dump->failure, children->error, "task-children", dump_task_name(dump, task),
				  "the kernel needs CONFIG_PROC_CHILDREN", "cannot list its children");
	for (size_t i = 0; i < children->count; i++)
		if (children_begin == dump->task_count || !has_task(dump, children_begin, children->pids[i]))
			add_task(dump, children->pids[i], task);
	return 0;
}

/* The children of the threads of @task that are not in the tree yet. */
static int add_children(struct dump *dump, struct dump_task *task, size_t children_begin)
{
	_cleanup_free_ struct children *of_threads = xcalloc(task->thread_count, sizeof(*of_threads));
	struct children_reading reading = {task, of_threads};
	int error = 0;

	parallel_for(task->thread_count, WORTH_A_READER, read_children_of_thread, &reading);
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
static int stop_others(struct dump *dump, struct dump_task *task, struct look *look)
{
	for (;;) {
		if (look->error < 0 || look->stat.state == 'X')
			return -ESRCH;
		if (look->stat.thread_count == task->thread_count) {
			if (strchr("tZ", look->stat.state))
				return 0;
			task->thread_count = 0;
		}
		size_t first = task->thread_count;
		int count = seize_new_threads(dump, task);
		if (count <= 0)
			return count;
		int error = wait_threads(dump, task, first);
		if (error < 0)
			return error;
		look->error = proc_read_stat(task->proc_dirfd, "stat", &look->stat);
	}
}

static void open_process(void *context, size_t index)
{
	const struct level *level = context;
	struct dump_task *task = level->dump->tasks[level->begin + index];

	task->proc_dirfd = proc_open(task->pid);
	if (task->proc_dirfd < 0)
		return;
	task->pidfd = syscall(SYS_pidfd_open, task->pid, 0);
	if (task->pidfd < 0)
		task->pidfd = -errno;
}

/* Returns 1 if @task is open, 0 if it is gone, or a failure. */
static int check_open(struct dump *dump, struct dump_task *task)
{
	if (task->proc_dirfd == -ESRCH || task->pidfd == -ESRCH)
		return 0;
	if (task->proc_dirfd < 0)
		return fail_errno(&dump->failure, task->proc_dirfd, "task-proc", NULL, NULL, "cannot open /proc/%d",
				  task->pid);
	if (task->pidfd < 0)
		return fail_errno(&dump->failure, task->pidfd, "task-pidfd", name_of(dump, task), NULL, "pidfd_open");
	return 1;
}

static void drop_task(struct dump_task *task)
{
	free(task->threads);
	close_fd_pointer(&task->proc_dirfd);
	close_fd_pointer(&task->pidfd);
}

/*
 * Makes the table of our descriptors large enough. Where threads share it, the kernel waits for a grace period of RCU
 * each time it grows: 10 ms.
 */
static void reserve_descriptors(const struct dump *dump, size_t count)
{
	_cleanup_fd_ int lowest = count < WORTH_A_READER ? -1 : fcntl(dump->images_dirfd, F_DUPFD_CLOEXEC, 0);
	_cleanup_fd_ int highest = lowest < 0 ? -1 : fcntl(lowest, F_DUPFD_CLOEXEC, lowest + (int)count);

	if (lowest >= 0 && highest < 0)
		log_debug("the table of descriptors cannot have %zu more: %s", count, strerror(errno));
}

/* Those that are gone are dropped. */
static int open_level(struct level *level)
{
	struct dump *dump = level->dump;
	size_t kept = level->begin;
	int result = 1;

	reserve_descriptors(dump, 2 * (level->end - level->begin));
	parallel_for(level->end - level->begin, WORTH_A_READER, open_process, level);
	for (size_t i = level->begin; i < level->end; i++) {
		struct dump_task *task = dump->tasks[i];
		if (result >= 0)
			result = check_open(dump, task);
		if (result)
			dump->tasks[kept++] = task;
		else
			drop_task(task);
	}
	level->end = dump->task_count = kept;
	return result < 0 ? result : 0;
}

/*
 * The leaders of one level of the tree, all of them interrupted before the first is waited for. Children that are
 * dead have none that could be seized.
 */
static int stop_leaders(const struct level *level)
{
	struct dump *dump = level->dump;

	for (size_t i = level->begin; i < level->end; i++) {
		struct dump_task *task = dump->tasks[i];
		task->threads = xcalloc(1, sizeof(*task->threads));
		int added = add_thread(dump, task, task->pid);
		if (added < 0)
			return added;
	}
	for (size_t i = level->begin; i < level->end; i++) {
		int error = wait_threads(dump, dump->tasks[i], 0);
		if (error < 0)
			return error;
	}
	return 0;
}

static void look_at_process(void *context, size_t index)
{
	const struct level *level = context;
	const struct dump_task *task = level->dump->tasks[level->begin + index];
	struct look *look = &level->looks[index];

	look->error = proc_read_stat(task->proc_dirfd, "stat", &look->stat);
	look->has_children = !look->error && look->stat.thread_count == 1 && look->stat.state == 't';
	if (look->has_children)
		read_children(task, task->pid, &look->children);
}

/* What it was found to be: it may have died, or its leader alone. */
static int settle_task(struct dump *dump, struct dump_task *task, const struct proc_stat *stat)
{
	/* The parent stands and has not reaped it, but it may have asked the kernel to. */
	if (task->parent && stat->ppid != task->parent->pid)
		return fail(&dump->failure, ESRCH, "task-vanished", name_of(dump, task), "try again",
			    "a child of process %d ended, and another process has its number", task->parent->pid);
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
static int stop_task(struct dump *dump, struct dump_task *task, struct look *look)
{
	int error = stop_others(dump, task, look);

	if (error == -ESRCH && !failure_is_set(&dump->failure)) {
		if (!task->thread_count)
			return 0;
		return fail(&dump->failure, ESRCH, "task-vanished", dump_task_name(dump, task), "try again",
			    "it ended while it was being stopped");
	}
	if (!error)
		error = settle_task(dump, task, &look->stat);
	return error ? error : 1;
}

/*
 * What else lives of the level. Tasks that died after they were listed and were reaped by their parent before it stood
 * are dropped: the parent is stopped now, so whoever is still there stays.
 */
static int settle_level(struct level *level)
{
	struct dump *dump = level->dump;
	size_t kept = level->begin;
	int result = 1;

	for (size_t i = level->begin; i < level->end; i++) {
		struct dump_task *task = dump->tasks[i];
		struct look *look = &level->looks[i - level->begin];
		if (result >= 0)
			result = stop_task(dump, task, look);
		if (result) {
			/* Exchanged, as the children of all looks are freed. */
			struct look dropped = level->looks[kept - level->begin];
			level->looks[kept - level->begin] = *look;
			*look = dropped;
			dump->tasks[kept++] = task;
		} else {
			drop_task(task);
		}
	}
	level->end = dump->task_count = kept;
	return result < 0 ? result : 0;
}

/* A process whose threads all stand cannot get new children, so its children are read once. */
static int add_level_children(const struct level *level)
{
	struct dump *dump = level->dump;
	int error = 0;

	for (size_t i = level->begin; i < level->end && !error; i++) {
		struct dump_task *task = dump->tasks[i];
		const struct look *look = &level->looks[i - level->begin];
		if (task->state == TASK_STATE_DEAD)
			continue;
		error = look->has_children ? add_children_of_thread(dump, task, &look->children, level->end)
					   : add_children(dump, task, level->end);
	}
	return error;
}

/* Stops the processes from *begin on, and adds their children behind them, where *begin points then. */
static int freeze_level(struct dump *dump, size_t *begin)
{
	struct level level = {.dump = dump, .begin = *begin, .end = dump->task_count};
	size_t count = level.end - level.begin;
	int error = open_level(&level);

	if (!error)
		error = stop_leaders(&level);
	level.looks = xcalloc(count, sizeof(*level.looks));
	if (!error) {
		parallel_for(level.end - level.begin, WORTH_A_READER, look_at_process, &level);
		error = settle_level(&level);
	}
	if (!error)
		error = add_level_children(&level);
	for (size_t i = 0; i < count; i++)
		free(level.looks[i].children.pids);
	free(level.looks);
	*begin = level.end;
	return error;
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

	add_task(dump, dump->options->pid, NULL);
	while (begin < dump->task_count) {
		int error = freeze_level(dump, &begin);
		if (error < 0)
			return error;
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
