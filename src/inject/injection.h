/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running programs inside the stopped threads of one process (design.md section 5).
 *
 * What holds before and after: every thread is in a ptrace stop of the calling thread with its own registers and
 * mask. In between the process carries one mapping of ours (code, then data) and never a descriptor. The first and
 * the last system call, that make and remove the mapping, run from the unused tail of the vDSO: there is no other
 * executable memory that is known to be free in any process.
 *
 * Whatever runs inside ends by waiting to be stopped (park code in inject/context.h, the interpreter's end); the tool
 * interrupts it, and sends it on if it came too early. So a batch costs a thread one stop, nothing has to be opened
 * inside to talk to the tool, and all threads of all processes can be on their way at once. The wait has an end: if
 * the tool dies at any instant, the kernel detaches the threads, and each unmaps what it can and finds back into its
 * own context by itself, at once or when its patience ends. If the tool lives but was held up for so long, it finds
 * that out and fails with the code "inject-late": then the thread has run on, and the dump has to begin anew.
 */
#pragma once

#include <stdbool.h>

#include "base/fail.h"
#include "inject/context.h"
#include "inject/program.h"

struct injection;

struct injection_target {
	pid_t pid;
	int proc_dirfd;
	const pid_t *tids; /* [0] is the leader */
	size_t thread_count;
	uint64_t vdso_start, vdso_end; /* 0 if the process has none */
	size_t leader_bytes;           /* room for the leader's programs: steps and data */
	size_t thread_bytes;           /* the same for each other thread */
	uint64_t patience_ns;          /* how long a thread waits for the tool: no batch may take longer */
};

/*
 * Saves all contexts and makes ready for single calls: injection_remote_call(). Returns 0 or a failure; then nothing
 * is left in the process.
 */
int injection_new(struct failure *failure, const struct injection_target *target, struct injection **ret_injection);
/*
 * Sends the leader to make the mapping. Nothing but injection_interrupt(), injection_open() and injection_close() may
 * follow. Returns 0 or a failure.
 */
int injection_begin_open(struct failure *failure, struct injection *injection);
/* Waits for the mapping and fills it: programs can run, and nothing else may. Returns 0 or a failure; close it then,
 * too. */
int injection_open(struct failure *failure, struct injection *injection);
/* The context that thread @index was found in. */
const struct thread_context *injection_context(const struct injection *injection, size_t index);
/* An empty program with its data in thread @index's slot. Owned by the caller. */
struct program *injection_program(struct injection *injection, size_t index);
/* Starts the program on thread @index; the results are there after injection_wait(). Returns 0 or a failure. */
int injection_start(struct failure *failure, struct injection *injection, size_t index, struct program *program);
/*
 * Asks thread @index to stop, if it is on its way. Not needed, but when several are asked before the first is waited
 * for, they stop side by side.
 */
void injection_interrupt(struct injection *injection, size_t index);
/*
 * Waits until the program of thread @index has ended, if one was started, and copies results into it. The thread stands
 * again with its own context, but for the leader, which gets it back from injection_close(). Returns 0, or the failure
 * of a program that ended early.
 */
int injection_wait(struct failure *failure, struct injection *injection, size_t index);
/*
 * Waits until the program of thread @index has made @step, behind which it waits (program_wait()); the thread stands
 * until injection_go_on(). Before injection_wait(). Returns 0 with the call's result, or a failure; then the program
 * has gone on or ended without us.
 */
int injection_wait_step(struct failure *failure, struct injection *injection, size_t index, size_t step,
			int64_t *ret_result);
int injection_go_on(struct failure *failure, struct injection *injection, size_t index);
/* Sends the leader to remove the mapping; injection_close() waits for that. Optional. */
void injection_begin_close(struct injection *injection);
/* Takes everything out of the process and frees the injection. Returns 0 or a failure. NULL is fine. */
int injection_close(struct failure *failure, struct injection *injection);

/*
 * One system call by the leader, from the vDSO's tail, for the few that are not worth a program. Returns 0 with
 * *ret_result (may be -errno) or a failure.
 */
int injection_remote_call(struct failure *failure, struct injection *injection, long number, const int64_t args[6],
			  int64_t *ret_result);

/*
 * The size of what a tool that was killed has left at @address of the process, code and data; it may be unmapped.
 * 0 = that is something else.
 */
uint64_t injection_remnant_bytes(pid_t pid, uint64_t address);
/*
 * True, with a failure, if a thread stands in that range: a criu that was killed a moment ago has left it there. It
 * goes on by itself as soon as it is let go.
 */
bool injection_is_inside(struct failure *failure, const struct injection *injection, uint64_t start, uint64_t bytes);
