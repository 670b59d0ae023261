/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stage: the only memory of criu that a task keeps while its own comes into its place. It lies where neither
 * criu nor the task has anything, holds the interpreter, one slot for each thread, and goes away last.
 */
#pragma once

#include "blob/wire.h"
#include "inject/program.h"
#include "model/restore.h"

struct stage_slot {
	uint64_t run;   /* address of the struct blob_run */
	uint64_t stack; /* top */
	uint64_t data;  /* programs: data, then steps */
	size_t data_bytes;
};

/* The layout, known to criu and to the task from the images alone. */
struct stage {
	uint64_t address, bytes;
	uint64_t code, notify;    /* inside */
	struct stage_slot *slots; /* by index of the thread */
};

/* Lays out the stages of all live tasks; their addresses are taken here. In criu. Returns 0 or a failure. */
int stage_plan(struct restore *restore);
/* Maps the stage of restore->self and puts the interpreter there. Returns 0 or a failure. */
int stage_map(struct restore *restore, const struct stage *stage);
/*
 * Writes a program and its run into slot @index; @id is what the notice will carry. In the task itself (@pid 0) or
 * from criu. Returns 0 or a failure.
 */
int stage_place(struct restore *restore, pid_t pid, const struct stage *stage, size_t index, uint32_t id,
		struct program *program);
/* An empty program for slot @index. */
struct program *stage_program(const struct stage *stage, size_t index);
/* Starts the interpreter in the calling process. */
void stage_enter(const struct stage *stage) __attribute__((noreturn));
/* Address of a system call instruction in the stage. */
uint64_t stage_call_instruction(const struct stage *stage);
