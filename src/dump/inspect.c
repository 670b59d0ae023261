/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only a task itself can tell: one program in each thread, all threads of the tree at once.
 *
 * Entry: collected. Exit: cores, close-on-exec flags and the heap's end are known; every thread stands again with its
 * own registers, but for the leaders, which are on their way to remove the interpreter: release_injections() waits for
 * that.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "dump/stages.h"
#include "inject/injection.h"
#include "kernel/proc.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/track.h"
#include "kinds/task/landlock.h"
#include "kinds/task/memory_policies.h"
#include "kinds/task/posix_timers.h"
#include "kinds/task/registers.h"
#include "kinds/task/semaphore_undo.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_status.h"

enum {
	LEADER_BYTES = 48 * 1024,
	THREAD_BYTES = 4 * 1024,
	FEW_SLOTS = 128,    /* take a task 10 us */
	THREADS_AHEAD = 32, /* that are started before one is asked to stop */
};

/* A thread that criu does not come back to goes on after this; it only matters when criu is killed. */
static const uint64_t PATIENCE_NS = 1000000000, PATIENCE_PER_THREAD_NS = 2000000;

/* What one thread is asked. */
struct inspection {
	struct dump_thread *thread;
	size_t index; /* in its task; 0 = the leader */
	struct program *program;
	void **task_states, **thread_states; /* by row of task_kinds */
	size_t first_fd_step, brk_step, tracker_step;
	bool makes_tracker;
};

/* The threads of the tree, task by task, the leaders first. */
struct inspections {
	struct inspection *items;
	size_t count, capacity;
};

/*
 * The size of a table that is small or nearly full, 0 if it is neither, or an old kernel (before 6.2) does not tell.
 * Asking each number of it inside the task costs less than a directory of /proc.
 */
static size_t dense_table_size(const struct dump_task *task)
{
	size_t slots = task->threads[0].status->fd_slots;
	struct stat directory;

	if (slots <= FEW_SLOTS)
		return slots;
	if (fstatat(task->proc_dirfd, "fd", &directory, 0) < 0)
		return 0;
	return slots <= 2 * (size_t)directory.st_size ? slots : 0;
}

static int list_descriptors(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ int *numbers = NULL;
	size_t slots = dense_table_size(task);
	int error = slots ? 0 : proc_list_numbers(task->proc_dirfd, "fd", &numbers, &task->fd_count);

	if (error < 0)
		return fail_errno(&dump->failure, error, "task-fds", dump_task_name(dump, task), NULL,
				  "cannot list its descriptors");
	if (slots)
		task->fd_count = slots;
	task->fds = arena_alloc(&dump->arena, task->fd_count * sizeof(*task->fds));
	for (size_t i = 0; i < task->fd_count; i++)
		task->fds[i].number = slots ? (int)i : numbers[i];
	return 0;
}

static uint64_t patience_ns(const struct dump *dump)
{
	size_t threads = 0;

	for (size_t i = 0; i < dump->task_count; i++)
		threads += dump->tasks[i]->thread_count;
	return PATIENCE_NS + threads * PATIENCE_PER_THREAD_NS;
}

/* @thread_count  the threads that will run programs, the leader first */
static int make_injection(struct dump *dump, struct dump_task *task, uint64_t patience, size_t thread_count,
			  size_t leader_bytes)
{
	_cleanup_free_ pid_t *tids = xcalloc(task->thread_count, sizeof(*tids));
	struct injection_target target = {
		.pid = task->pid,
		.proc_dirfd = task->proc_dirfd,
		.tids = tids,
		.thread_count = thread_count,
		.leader_bytes = leader_bytes,
		.thread_bytes = THREAD_BYTES,
		.patience_ns = patience,
	};

	for (size_t i = 0; i < task->thread_count; i++)
		tids[i] = task->threads[i].tid;
	memory_find_vdso(task, &target.vdso_start, &target.vdso_end);
	int error = injection_new(&dump->failure, &target, &task->injection);
	return error ? fail_in(&dump->failure, "%s", dump_task_name(dump, task)) : 0;
}

/*
 * What an earlier criu that was killed could not take with it; it must not be dumped as the task's own. It may be one
 * mapping or two (code, data), and the kernel may have joined its end with a neighbour. Removed before there is a new
 * one, so that there is never more than one.
 */
static int remove_remnants(struct dump *dump, struct dump_task *task)
{
	struct mappings *mappings = &task->memory->mappings;
	uint64_t remnant_end = 0;
	size_t kept = 0;
	int error = 0;

	for (size_t i = 0; i < mappings->count && !error; i++) {
		struct mapping mapping = mappings->items[i];
		int64_t result;
		bool candidate = (mapping.protection & PROT_EXEC) && !mapping.inode && !mapping.shared &&
				 !mapping.name[0] && mapping.start >= remnant_end;
		uint64_t bytes = candidate ? injection_remnant_bytes(task->pid, mapping.start) : 0;
		if (bytes && injection_is_inside(&dump->failure, task->injection, mapping.start, bytes))
			return -dump->failure.error;
		if (bytes) {
			remnant_end = mapping.start + bytes;
			error = injection_remote_call(&dump->failure, task->injection, SYS_munmap,
						      (const int64_t[6]){mapping.start, bytes}, &result);
		}
		if (mapping.start < remnant_end)
			mapping.start = remnant_end < mapping.end ? remnant_end : mapping.end;
		if (mapping.start < mapping.end)
			mappings->items[kept++] = mapping;
	}
	if (!error)
		mappings->count = kept;
	return error;
}

/* The leader's own questions: the end of the heap, and each descriptor's flag (a stat and a read less per file). */
static void ask_leader(struct dump_task *task, struct inspection *inspection)
{
	inspection->brk_step = PROGRAM_CALL(inspection->program, SYS_brk, 0);
	inspection->first_fd_step = inspection->brk_step + 1;
	for (size_t i = 0; i < task->fd_count; i++)
		PROGRAM_TRY(inspection->program, SYS_fcntl, task->fds[i].number, F_GETFD);
}

static int compose(struct dump *dump, struct inspection *inspection)
{
	struct dump_thread *thread = inspection->thread;
	bool leader = inspection->index == 0;
	size_t row = 0;

	inspection->task_states = xcalloc(task_kind_count(), sizeof(void *));
	inspection->thread_states = xcalloc(task_kind_count(), sizeof(void *));
	for (const struct task_kind *const *kind = task_kinds; *kind; kind++, row++) {
		int error = 0;
		if (leader && (*kind)->inspect)
			error = (*kind)->inspect(dump, thread->task, inspection->program,
						 &inspection->task_states[row]);
		if (!error && (*kind)->inspect_thread)
			error = (*kind)->inspect_thread(dump, thread, inspection->program,
							&inspection->thread_states[row]);
		if (error < 0)
			return error;
	}
	if (leader)
		ask_leader(thread->task, inspection);
	/* Last: its descriptor is none of the task's. */
	inspection->makes_tracker = leader && tracker_wants(dump, thread->task);
	if (inspection->makes_tracker)
		inspection->tracker_step = tracker_ask(inspection->program, patience_ns(dump));
	return 0;
}

static int begin_task(struct dump *dump, struct dump_task *task, uint64_t patience)
{
	int error = list_descriptors(dump, task);

	if (!error)
		error = make_injection(dump, task, patience, task->thread_count,
				       LEADER_BYTES + task->fd_count * sizeof(struct blob_step) +
					       posix_timers_program_bytes(task) +
					       memory_policies_program_bytes(dump, task));
	if (!error)
		error = remove_remnants(dump, task);
	if (!error && injection_begin_open(&dump->failure, task->injection) < 0)
		error = fail_in(&dump->failure, "%s", dump_task_name(dump, task));
	return error;
}

static int open_task(struct dump *dump, struct dump_task *task)
{
	int error = injection_open(&dump->failure, task->injection);

	return error ? fail_in(&dump->failure, "%s", dump_task_name(dump, task)) : 0;
}

static int start_thread(struct dump *dump, struct inspection *inspection)
{
	struct injection *injection = inspection->thread->task->injection;

	inspection->program = injection_program(injection, inspection->index);
	int error = compose(dump, inspection);
	return error ? error : injection_start(&dump->failure, injection, inspection->index, inspection->program);
}

/* Only leaders run alone. */
static void interrupt_leaders(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->injection)
			injection_interrupt(dump->tasks[i]->injection, 0);
}

static int evaluate_kinds(struct dump *dump, struct dump_thread *thread, const struct inspection *inspection)
{
	bool leader = inspection->index == 0;
	size_t row = 0;

	for (const struct task_kind *const *kind = task_kinds; *kind; kind++, row++) {
		int error = 0;
		if (leader && (*kind)->inspected)
			error = (*kind)->inspected(dump, thread->task, inspection->program,
						   inspection->task_states[row]);
		if (!error && (*kind)->inspected_thread)
			error = (*kind)->inspected_thread(dump, thread, inspection->program,
							  inspection->thread_states[row]);
		if (error < 0)
			error = dump_blocked(dump);
		if (error < 0)
			return error;
	}
	return 0;
}

static void keep_mask(struct dump_thread *thread, uint64_t blocked, bool leader)
{
	if (leader) {
		thread->core->tc->blk_sigset = blocked;
	} else {
		thread->core->thread_core->has_blk_sigset = true;
		thread->core->thread_core->blk_sigset = blocked;
	}
}

/* Numbers that are not in use drop out. */
static void take_descriptor_flags(struct dump_task *task, const struct inspection *leader)
{
	size_t kept = 0;

	for (size_t i = 0; i < task->fd_count; i++) {
		int64_t flags = program_result(leader->program, leader->first_fd_step + i);
		if (flags < 0)
			continue;
		task->fds[kept] = task->fds[i];
		task->fds[kept++].close_on_exec = flags & FD_CLOEXEC;
	}
	task->fd_count = kept;
}

static int evaluate_thread(struct dump *dump, const struct inspection *inspection)
{
	struct dump_thread *thread = inspection->thread;
	struct dump_task *task = thread->task;
	const struct thread_context *context = injection_context(task->injection, inspection->index);
	bool leader = inspection->index == 0;

	if (leader) {
		task->mm->mm_brk = program_result(inspection->program, inspection->brk_step);
		take_descriptor_flags(task, inspection);
	}
	int error = evaluate_kinds(dump, thread, inspection);
	if (error < 0)
		return error;
	keep_mask(thread, context->blocked, leader);
	error = registers_dump(dump, thread, context);
	return error < 0 ? dump_blocked(dump) : 0;
}

static void release_inspection(struct inspection *inspection)
{
	program_free(TAKE_POINTER(inspection->program));
	free(TAKE_POINTER(inspection->task_states));
	free(TAKE_POINTER(inspection->thread_states));
}

/* All processes do the same step side by side: each is sent off before the first is waited for. */
static int open_tree(struct dump *dump)
{
	uint64_t patience = patience_ns(dump);
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->state != TASK_STATE_DEAD)
			error = begin_task(dump, dump->tasks[i], patience);
	dump_stage(dump, "injecting");
	interrupt_leaders(dump);
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->injection)
			error = open_task(dump, dump->tasks[i]);
	dump_stage(dump, "injected");
	return error;
}

static void list_threads(struct dump *dump, struct inspections *list)
{
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; dump->tasks[i]->injection && t < dump->tasks[i]->thread_count; t++) {
			ARRAY_GROW(list->items, list->count, list->capacity);
			list->items[list->count++] =
				(struct inspection){.thread = &dump->tasks[i]->threads[t], .index = t};
		}
}

/* It has had the time for its program. One that waits for its tracker to be taken goes on. */
static int stop_thread(struct dump *dump, struct inspection *inspection)
{
	struct dump_task *task = inspection->thread->task;

	if (inspection->makes_tracker)
		return tracker_adopt(dump, task, inspection->tracker_step);
	injection_interrupt(task->injection, inspection->index);
	return 0;
}

/* @error: of what came before; then it is only waited for. Returns that, or a failure of its own. */
static int finish_thread(struct dump *dump, struct inspection *inspection, int error)
{
	struct dump_task *task = inspection->thread->task;
	struct failure failure = {};
	int waited = injection_wait(&failure, task->injection, inspection->index);

	if (waited && !error) {
		dump->failure = failure;
		error = fail_in(&dump->failure, "%s", dump_task_name(dump, task));
	}
	if (!error)
		error = evaluate_thread(dump, inspection);
	/* The last one of its task: the mapping is gone when the last task is looked at. */
	if (!error && inspection->index + 1 == task->thread_count)
		injection_begin_close(task->injection);
	release_inspection(inspection);
	return error;
}

/*
 * Threads run their programs while others are started and others are evaluated. No more of them are on their way at
 * a time than is needed for that: programs that are composed where the last ones were just freed cost half as much as
 * those in new memory. What was started is waited for in any case: no thread may be left in the middle of a program.
 */
int inspect_tree(struct dump *dump)
{
	struct inspections threads = {};
	int error = open_tree(dump);

	if (!error)
		list_threads(dump, &threads);
	for (size_t i = 0; i < threads.count + 2 * THREADS_AHEAD; i++) {
		if (i == threads.count)
			dump_stage(dump, "inspecting");
		if (i < threads.count && !error)
			error = start_thread(dump, &threads.items[i]);
		if (i >= THREADS_AHEAD && i - THREADS_AHEAD < threads.count && !error)
			error = stop_thread(dump, &threads.items[i - THREADS_AHEAD]);
		if (i >= 2 * THREADS_AHEAD)
			error = finish_thread(dump, &threads.items[i - 2 * THREADS_AHEAD], error);
	}
	free(threads.items);
	landlock_end(dump);
	semaphore_undo_end(dump);
	return error;
}

/* For a pre-dump: what only makes a tracker in the leader. */
struct tracker_run {
	struct program *program;
	size_t step;
};

static int start_tracker(struct dump *dump, struct dump_task *task, struct tracker_run *run)
{
	int error = open_task(dump, task);

	if (error < 0)
		return error;
	run->program = injection_program(task->injection, 0);
	run->step = tracker_ask(run->program, patience_ns(dump));
	return injection_start(&dump->failure, task->injection, 0, run->program);
}

static int start_trackers(struct dump *dump, struct tracker_run *runs)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++) {
		struct dump_task *task = dump->tasks[i];
		if (!tracker_wants(dump, task))
			continue;
		error = make_injection(dump, task, patience_ns(dump), 1, THREAD_BYTES);
		if (!error && injection_begin_open(&dump->failure, task->injection) < 0)
			error = fail_in(&dump->failure, "%s", dump_task_name(dump, task));
	}
	interrupt_leaders(dump);
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->injection)
			error = start_tracker(dump, dump->tasks[i], &runs[i]);
	interrupt_leaders(dump);
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->injection)
			error = tracker_adopt(dump, dump->tasks[i], runs[i].step);
	interrupt_leaders(dump);
	return error;
}

int inject_trackers(struct dump *dump)
{
	_cleanup_free_ struct tracker_run *runs = xcalloc(dump->task_count, sizeof(*runs));
	int error = start_trackers(dump, runs);

	for (size_t i = 0; i < dump->task_count; i++) {
		struct failure failure = {};
		if (runs[i].program && injection_wait(&failure, dump->tasks[i]->injection, 0) && !error) {
			dump->failure = failure;
			error = fail_in(&dump->failure, "%s", dump_task_name(dump, dump->tasks[i]));
		}
		program_free(runs[i].program);
	}
	int released = release_injections(dump);
	return error ? error : released;
}

int release_injections(struct dump *dump)
{
	int result = 0;

	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->injection)
			injection_begin_close(dump->tasks[i]->injection);
	interrupt_leaders(dump);
	for (size_t i = 0; i < dump->task_count; i++) {
		struct failure failure = {};
		int error = injection_close(&failure, TAKE_POINTER(dump->tasks[i]->injection));
		if (error && !result) {
			result = error;
			if (!failure_is_set(&dump->failure))
				dump->failure = failure;
		}
	}
	return result;
}
