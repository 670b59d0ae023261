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

/* The result of a step that the tool waits for (program_wait()), before it is made. */
#define BLOB_STEP_NOT_MADE INT64_MIN

struct blob_step {
	uint64_t number;
	int64_t args[6];
	uint32_t flags;
	uint32_t reserved;
	int64_t expected;
	int64_t result;
};

/* What the interpreter tells when a program ended. */
struct blob_notice {
	uint32_t id;         /* blob_run.id */
	int32_t failed_step; /* -1 = all steps went as expected */
	int64_t result;      /* of the failed step */
};

enum blob_run_state {
	BLOB_RUN_ON_ITS_WAY, /* also before the first step */
	BLOB_RUN_ENDED,      /* waits for the tool; never sent on from here */
	BLOB_RUN_LEFT,       /* the tool did not come: the thread goes its own way */
};

/* The kernel's timespec. */
struct blob_time {
	int64_t seconds, nanoseconds;
};

/* One run of one thread. Lies in the task's memory; all pointers are addresses of the task. */
struct blob_run {
	uint64_t steps;
	uint32_t count;
	uint32_t id;
	uint64_t notify; /* without `leave`: address of an int, descriptor to write the notice to and to wait on */
	uint64_t leave;  /* code that undoes everything when the tool does not come; 0 = exit the process */
	struct blob_time patience;   /* with `leave`: how long the thread waits for the tool */
	uint64_t no_signals;         /* an empty signal set */
	uint64_t unmap, unmap_bytes; /* leave begins with a system call instruction: munmap of this; 0 = it does not */
	uint64_t stack;              /* top of the stack the run uses; SPAWN uses the new thread's */
	uint32_t state;              /* enum blob_run_state */
	uint32_t reserved;
	struct blob_notice notice;
};
