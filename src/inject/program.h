/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program for the interpreter: system calls with their arguments, and the data they point to, composed in the
 * tool's memory for a known address in the task.
 *
 *     remote_t limit = program_reserve(program, sizeof(struct rlimit));
 *     size_t step = PROGRAM_CALL(program, SYS_prlimit64, 0, RLIMIT_NOFILE, 0, limit.address);
 *     …program runs…
 *     program_result(program, step); program_data(program, limit);
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "blob/wire.h"

/* An address in the task; never dereferenced in the tool. */
typedef struct {
	uint64_t address;
} remote_t;

struct program;

/* An empty program whose data will lie at @data in the task, in at most @data_capacity bytes. */
struct program *program_new(remote_t data, size_t data_capacity);
void program_free(struct program *program);

/* Appends a call with six arguments; returns its index. */
size_t program_call(struct program *program, long number, const int64_t args[6], uint32_t flags);
#define PROGRAM_CALL_FLAGS(program, flags, number, ...) \
	program_call((program), (number), (const int64_t[6]){__VA_ARGS__}, (flags))
/* A call whose failure (-errno) ends the program and fails the dump or restore. */
#define PROGRAM_CALL(program, number, ...) PROGRAM_CALL_FLAGS(program, 0, number, __VA_ARGS__)
/* A call that may fail: its result is looked at later, or does not matter. */
#define PROGRAM_TRY(program, number, ...) PROGRAM_CALL_FLAGS(program, BLOB_STEP_MAY_FAIL, number, __VA_ARGS__)
/* The call at @step must return exactly @expected. */
void program_expect(struct program *program, size_t step, int64_t expected);
/*
 * The program waits behind its last call for the tool, which takes its result while the thread stands
 * (injection_wait_step()), and goes on without it after @patience_ns.
 */
void program_wait(struct program *program, uint64_t patience_ns);
/* Names the object of the last call, for the failure line: "prctl(PR_SET_NAME)"; @text is a constant. */
void program_describe(struct program *program, const char *text);

/* Zeroed room for output; 8-byte aligned. Returns its address in the task. */
remote_t program_reserve(struct program *program, size_t size);
/* A copy of @data in the task. */
remote_t program_copy(struct program *program, const void *data, size_t size);

/* After the run: a step's result, and the tool's view of what lies at @where (valid until program_free). */
int64_t program_result(const struct program *program, size_t step);
const void *program_data(const struct program *program, remote_t where);

/* For the runners. */
size_t program_step_count(const struct program *program);
const char *program_step_description(const struct program *program, size_t step);
struct blob_step *program_steps(struct program *program);
/* The data block: its address in the task, the tool's buffer, bytes used. */
remote_t program_data_address(const struct program *program);
void *program_data_buffer(struct program *program);
size_t program_data_size(const struct program *program);
/* True if the composition ran over its capacity: the program must not be run. */
size_t program_overflow(const struct program *program);
