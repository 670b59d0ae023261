/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kind of state that belongs to a task or thread (credentials, timers, signal handlers …).
 *
 * Dump: `collect*` read from outside; `inspect*` add system calls to a program that the stopped thread itself runs
 * (what only it can tell), `inspected*` take the results. Restore: `enter` runs in the new process while it is still
 * criu's code; `plan*` add the system calls of the task's last program, after its own memory is in place; `outside*`
 * run in criu on the finished but stopped threads.
 * Rows of task_kinds.c are the order: `plan` of row 1 comes before `plan` of row 2. Every member may be NULL.
 */
#pragma once

#include "inject/program.h"
#include "model/dump.h"
#include "model/restore.h"

struct task_kind {
	const char *name;

	/* ---- dump ---- */
	/* Fill task->core / thread->core (allocated, initialised, with thread_core and, for the leader, tc). */
	int (*collect)(struct dump *dump, struct dump_task *task);
	int (*collect_thread)(struct dump *dump, struct dump_thread *thread);
	/*
	 * Add calls. What must be remembered until `inspected` (step indexes, addresses) goes into *state, which is
	 * the kind's own for this task or thread (allocate from dump->arena).
	 */
	int (*inspect)(struct dump *dump, struct dump_task *task, struct program *program, void **state);
	int (*inspected)(struct dump *dump, struct dump_task *task, const struct program *program, void *state);
	int (*inspect_thread)(struct dump *dump, struct dump_thread *thread, struct program *program, void **state);
	int (*inspected_thread)(struct dump *dump, struct dump_thread *thread, const struct program *program,
				void *state);

	/* ---- restore ---- */
	/* In criu, before any process exists: check what the images say. */
	int (*check)(struct restore *restore, const struct restore_task *task);
	/* In the new process, early: all its children exist, memory and files are not there yet. */
	int (*enter)(struct restore *restore, const struct restore_task *task);
	/* The last program of the task's leader, and that of each thread (the leader's thread part runs too). */
	int (*plan)(struct restore *restore, const struct restore_task *task, struct program *program);
	int (*plan_thread)(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
			   struct program *program);
	/*
	 * A second, final program of the leader, run when the whole tree is built (every thread exists, dead and
	 * stopped tasks are dead and stopped): pending signals, timers that must not run earlier.
	 */
	int (*plan_last)(struct restore *restore, const struct restore_task *task, struct program *program);
	/*
	 * A final program of each thread, run when all threads stand and are traced with seccomp suspended: first those
	 * of all other threads, then the leader's, row by row together with plan_last. Composed in criu. Threads with
	 * an empty one are not disturbed.
	 */
	int (*plan_last_thread)(struct restore *restore, const struct restore_task *task, const CoreEntry *thread,
				pid_t tid, struct program *program);
	/* In criu, when all threads of the task exist and wait: what can be set from outside. */
	int (*outside)(struct restore *restore, const struct restore_task *task);
	int (*outside_thread)(struct restore *restore, const struct restore_task *task, const CoreEntry *thread,
			      pid_t tid);
};

/* The table, ends with NULL. */
extern const struct task_kind *const task_kinds[];
/* Number of rows before the NULL. */
size_t task_kind_count(void);
