/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals that were sent and not yet taken: a queue of the process and one of each thread.
 *
 * PTRACE_PEEKSIGINFO reads the queues from outside, in order. Legacy signals whose siginfo the kernel could not
 * store (the queue was full) are only bits in the status; a reader gets them as sent by nobody, and so they are
 * kept. A thread may queue any siginfo to itself, also one that claims to come from the kernel.
 * The queues are read right after the timers: a timer that fires between its own reading and this one would be lost,
 * one that fires later is still running in the images.
 */
#include "kinds/task/pending.h"

#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_facts.h"
#include "kinds/task/thread_status.h"

enum { SIGINFO_BYTES = 128, PEEK_COUNT = 32, SIGNAL_COUNT = 64, SIGNAL_SET_BYTES = 8 };

_Static_assert(sizeof(siginfo_t) == SIGINFO_BYTES, "siginfo of the kernel");

struct signal_queue {
	siginfo_t *items;
	size_t count, capacity;
};

static int peek(pid_t tid, bool shared, struct signal_queue *queue)
{
	struct __ptrace_peeksiginfo_args args = {.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0, .nr = PEEK_COUNT};

	for (;;) {
		while (queue->capacity < queue->count + PEEK_COUNT) {
			queue->capacity = queue->capacity ? queue->capacity * 2 : PEEK_COUNT;
			queue->items = xrealloc_array(queue->items, queue->capacity, sizeof(*queue->items));
		}
		args.off = queue->count;
		long count = ptrace(PTRACE_PEEKSIGINFO, tid, &args, queue->items + queue->count);
		if (count < 0)
			return -errno;
		if (!count)
			return 0;
		queue->count += count;
	}
}

static bool has_signal(const struct signal_queue *queue, int signal)
{
	for (size_t i = 0; i < queue->count; i++)
		if (queue->items[i].si_signo == signal)
			return true;
	return false;
}

/* Adds the signals of @set that have no siginfo. */
static void add_bare(struct signal_queue *queue, uint64_t set)
{
	for (int signal = 1; signal <= SIGNAL_COUNT; signal++) {
		if (!(set >> (signal - 1) & 1) || has_signal(queue, signal))
			continue;
		ARRAY_GROW(queue->items, queue->count, queue->capacity);
		queue->items[queue->count] = (siginfo_t){};
		queue->items[queue->count].si_signo = signal;
		queue->items[queue->count++].si_code = SI_USER;
	}
}

/* Sent by a timer of the process itself. */
static bool is_from_timer(const siginfo_t *info)
{
	if (info->si_code == SI_TIMER)
		return true;
	return info->si_code == SI_KERNEL &&
	       (info->si_signo == SIGALRM || info->si_signo == SIGVTALRM || info->si_signo == SIGPROF);
}

/* Nothing is taken from a queue while the thread stands: those known from the reading before are a prefix. */
static SignalQueueEntry *to_entry(struct dump *dump, const struct signal_queue *queue, const SignalQueueEntry *before)
{
	SignalQueueEntry *entry = arena_message(&dump->arena, SignalQueueEntry, signal_queue_entry);
	size_t known = before ? before->n_signals : 0;

	entry->signals = arena_alloc(&dump->arena, (queue->count + 1) * sizeof(*entry->signals));
	for (size_t i = 0; i < queue->count; i++) {
		if (before && i >= known && is_from_timer(&queue->items[i]))
			continue;
		SiginfoEntry *info = arena_message(&dump->arena, SiginfoEntry, siginfo_entry);
		info->siginfo.data = arena_memdup(&dump->arena, &queue->items[i], SIGINFO_BYTES);
		info->siginfo.len = SIGINFO_BYTES;
		entry->signals[entry->n_signals++] = info;
	}
	return entry;
}

static int read_queue(struct dump *dump, struct dump_thread *thread, bool shared, uint64_t set,
		      SignalQueueEntry **entry)
{
	struct signal_queue queue = {};
	/* Also if the status said that nothing waits: it was read before the timers were. */
	int error = peek(thread->tid, shared, &queue);

	if (!error) {
		add_bare(&queue, set);
		*entry = to_entry(dump, &queue, *entry);
	}
	free(queue.items);
	return error ? fail_errno(&dump->failure, error, "task-pending", dump_task_name(dump, thread->task), NULL,
				  "cannot read the pending signals of thread %d", thread->tid)
		     : 0;
}

static int read_thread(struct dump *dump, struct dump_thread *thread, const struct thread_status *status)
{
	ThreadCoreEntry *core = thread->core->thread_core;
	TaskCoreEntry *task_core = thread->core->tc;
	int error = read_queue(dump, thread, false, status->pending, &core->signals_p);

	if (!error && task_core)
		error = read_queue(dump, thread, true, status->pending_shared, &task_core->signals_s);
	return error;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	const struct thread_status *status;
	int error = thread_status_get(dump, thread, &status);

	return error ? error : read_thread(dump, thread, status);
}

static int refresh_threads(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++) {
			struct dump_thread *thread = &dump->tasks[i]->threads[t];
			const struct thread_status *status;
			/* Bare bits are looked for where anybody may send signals to: in the process's queue. */
			int error = t ? thread_status_get(dump, thread, &status)
				      : thread_status_refresh(dump, thread, &status);
			if (!error)
				error = read_thread(dump, thread, status);
			if (error < 0)
				return error;
		}
	}
	return 0;
}

int pending_refresh(struct dump *dump)
{
	thread_facts_read_statuses(dump);
	int error = refresh_threads(dump);
	thread_facts_release(dump);
	return error;
}

/* ---- restore ---- */

/*
 * SIGKILL and SIGSTOP cannot be blocked and would end the program itself: a task that had one of them pending was
 * about to stop or end, which the images do not have to promise.
 */
static bool can_queue(int signal)
{
	return signal >= 1 && signal <= SIGNAL_COUNT && signal != SIGKILL && signal != SIGSTOP;
}

static void plan_private(const struct restore_task *task, const CoreEntry *thread, pid_t tid, struct program *program)
{
	const SignalQueueEntry *queue = thread->thread_core->signals_p;

	for (size_t i = 0; queue && i < queue->n_signals; i++) {
		siginfo_t info;
		memcpy(&info, queue->signals[i]->siginfo.data, sizeof(info));
		if (!can_queue(info.si_signo))
			continue;
		remote_t where = program_copy(program, &info, sizeof(info));
		PROGRAM_CALL(program, SYS_rt_tgsigqueueinfo, task->pid, tid, info.si_signo, where.address);
		program_describe(program, "rt_tgsigqueueinfo");
	}
}

/* The leader's own wait for its last program: the drain there would take them. */
static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	if (tid != task->pid)
		plan_private(task, thread, tid, program);
	return 0;
}

/* Takes what the building of the tree has left in the process's queue: SIGCHLD of helpers and of stopped children. */
static void plan_drain(struct program *program)
{
	const uint64_t all = ~0ULL;
	const struct timespec at_once = {};
	remote_t set = program_copy(program, &all, sizeof(all));
	remote_t timeout = program_copy(program, &at_once, sizeof(at_once));

	PROGRAM_CALL_FLAGS(program, BLOB_STEP_MAY_FAIL | BLOB_STEP_UNTIL_FAILS, SYS_rt_sigtimedwait, set.address, 0,
			   timeout.address, SIGNAL_SET_BYTES);
}

static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const SignalQueueEntry *queue = task->core->tc->signals_s;

	plan_drain(program);
	for (size_t i = 0; queue && i < queue->n_signals; i++) {
		siginfo_t info;
		memcpy(&info, queue->signals[i]->siginfo.data, sizeof(info));
		if (!can_queue(info.si_signo))
			continue;
		remote_t where = program_copy(program, &info, sizeof(info));
		PROGRAM_CALL(program, SYS_rt_sigqueueinfo, task->pid, info.si_signo, where.address);
		program_describe(program, "rt_sigqueueinfo");
	}
	plan_private(task, task->core, task->pid, program);
	return 0;
}

const struct task_kind pending_kind = {
	.name = "pending signals",
	.inspected_thread = inspected_thread,
	.plan_thread = plan_thread,
	.plan_last = plan_last,
};
