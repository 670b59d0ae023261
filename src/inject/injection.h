/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running programs inside the stopped threads of one process (design.md section 5).
 *
 * What holds before and after: every thread is in a ptrace stop of the calling thread with its own registers and
 * mask. In between the process carries two mappings of ours (code, data) and one socket pair. If the tool dies at
 * any instant, the kernel detaches the threads and each finds its way back: outside of programs because its own
 * context is untouched, inside because the code it runs ends in leave code (inject/context.h).
 * The very first system calls run from the unused tail of the vDSO: there is no other executable memory that is
 * known to be free in any process.
 */
#pragma once

#include <stdbool.h>

#include "base/fail.h"
#include "inject/context.h"
#include "inject/program.h"

struct injection;

struct injection_target {
	pid_t pid;
	int pidfd;
	int proc_dirfd;
	const pid_t *tids; /* [0] is the leader */
	size_t thread_count;
	uint64_t vdso_start, vdso_end; /* 0 if the process has none */
	size_t leader_bytes;           /* room for the leader's programs: steps and data */
	size_t thread_bytes;           /* the same for each other thread */
};

/* Saves all contexts and makes the mappings. Returns 0 or a failure; then nothing is left in the process. */
int injection_open(struct failure *failure, const struct injection_target *target, struct injection **ret_injection);
/* The context that thread @index was found in. */
const struct thread_context *injection_context(const struct injection *injection, size_t index);
/* An empty program with its data in thread @index's slot. Owned by the caller. */
struct program *injection_program(struct injection *injection, size_t index);
/* Starts the program on thread @index; the results are there after injection_wait(). Returns 0 or a failure. */
int injection_start(struct failure *failure, struct injection *injection, size_t index, struct program *program);
/*
 * Waits until every started program has ended, stops the threads again with their own contexts and copies results
 * into the programs. Returns 0 or the failure of the first program that ended early.
 */
int injection_wait(struct failure *failure, struct injection *injection);
/* Takes everything out of the process and frees the injection. Returns 0 or a failure. NULL is fine. */
int injection_close(struct failure *failure, struct injection *injection);

/*
 * One system call by the leader, from the vDSO's tail, two stops: for the few calls before and after programs can
 * run. Returns 0 with *ret_result (may be -errno) or a failure.
 */
int injection_remote_call(struct failure *failure, struct injection *injection, long number, const int64_t args[6],
			  int64_t *ret_result);

/* True if a tool that was killed has left the interpreter at @address of the process; it may be unmapped. */
bool injection_is_remnant(pid_t pid, uint64_t address);
