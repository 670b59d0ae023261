/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tool and the interpreter inside a task share: programs are lists of system calls as data.
 * The only header that the freestanding code sees.
 */
#pragma once

#include <stdint.h>

enum blob_step_flags {
	BLOB_STEP_MAY_FAIL = 1 << 0, /* go on whatever the result is */
	BLOB_STEP_EXPECT = 1 << 1,   /* the result must equal `expected` (default: any but -4095..-1) */
	BLOB_STEP_SPAWN = 1 << 2,    /* clone3: args[0] clone_args, args[1] size, args[2] the new thread's blob_run */
	BLOB_STEP_UNTIL_FAILS = 1 << 3, /* repeat until the result is negative (draining a queue) */
	/* args[i] is the index of an earlier step of this program, whose result is meant: BLOB_STEP_RESULT_OF << i */
	BLOB_STEP_RESULT_OF = 1 << 8,
};

struct blob_step {
	uint64_t number;
	int64_t args[6];
	uint32_t flags;
	uint32_t reserved;
	int64_t expected;
	int64_t result;
};

/* What the interpreter writes to its notification descriptor when a program ended. */
struct blob_notice {
	uint32_t id;         /* blob_run.id */
	int32_t failed_step; /* -1 = all steps went as expected */
	int64_t result;      /* of the failed step */
};

/* One run of one thread. Lies in the task's memory; all pointers are addresses of the task. */
struct blob_run {
	uint64_t steps;
	uint32_t count;
	uint32_t id;
	uint64_t notify;             /* address of an int: descriptor to write the notice to and to wait on */
	uint64_t leave;              /* code that undoes everything when the tool is gone; 0 = exit the process */
	uint64_t unmap, unmap_bytes; /* leave begins with a system call instruction: munmap of this; 0 = it does not */
	uint64_t stack;              /* top of the stack the run uses; SPAWN uses the new thread's */
	struct blob_notice notice;
};
