/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The user context of a stopped thread and the machine code that brings it back without the tool. One
 * implementation per architecture in inject/arch/.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

struct thread_context {
	struct user_regs_struct regs;
	uint64_t blocked; /* signal mask */
};

/* Reads registers and mask of a thread in ptrace stop. Returns 0 or -errno. */
int context_save(pid_t tid, struct thread_context *ret_context);
/*
 * Writes them back: registers last, so that a tool that dies in between leaves a thread that still runs towards its
 * leave code with whatever mask. The kernel's restart logic sees the original state. Returns 0 or -errno.
 */
int context_restore(pid_t tid, const struct thread_context *context);
/*
 * Points the thread at @code with @argument as first parameter and @stack (0 = its own), outside of any system call.
 * Its signals have to be blocked. Returns 0 or -errno.
 */
int context_redirect(pid_t tid, const struct thread_context *original, uint64_t code, uint64_t argument,
		     uint64_t stack);
/* Points the thread at @code, whose first instruction is a system call with these arguments; the rest is the same. */
int context_redirect_to_call(pid_t tid, const struct thread_context *original, uint64_t code, long number,
			     const int64_t args[6]);
/* Blocks all signals of the thread until context_restore(). Returns 0 or -errno. */
int context_block_signals(pid_t tid);
/* The result of the system call that a thread in syscall-exit-stop has made. Returns 0 or -errno. */
int context_call_result(pid_t tid, int64_t *ret_result);

enum { LEAVE_CODE_BYTES = 256, PARK_CODE_BYTES = 512 };
/*
 * Writes code for @address (at most LEAVE_CODE_BYTES) that sets the mask, the stack pointer and every general
 * register of @context and goes on where the thread was; an interrupted system call is restarted as the kernel
 * would. It uses no stack and no vector registers. Returns the length.
 */
size_t context_leave_code(const struct thread_context *context, uint64_t address, uint8_t *code);
/*
 * Writes code (PARK_CODE_BYTES) that makes one system call and then parks the thread: it waits, at most
 * @patience_ns, to be stopped. If nobody comes, the code unmaps what context_call_parked() said and leaves into
 * @context. Returns the offset of that unmapping call, which other code may jump to.
 */
size_t context_park_code(const struct thread_context *context, uint64_t address, uint64_t patience_ns, uint8_t *code);
/*
 * Points the thread at the park code @code for the call @number. If the tool does not come back, @unmap_bytes at
 * @unmap are unmapped; @unmap 0 means at the result of the call, for mmap itself. Returns 0 or -errno.
 */
int context_call_parked(pid_t tid, const struct thread_context *original, uint64_t code, long number,
			const int64_t args[6], uint64_t unmap, uint64_t unmap_bytes);
/*
 * How far a stopped thread is in the park code. Returns 1 with *ret_result when the call is made, 0 when it is still
 * to come (let the thread run on), -ETIME when the thread's patience has ended (its registers are its own, or it is
 * on the way there), or -errno.
 */
int context_parked_result(pid_t tid, uint64_t code, int64_t *ret_result);
/* Where a stopped thread stands. Returns 0 or -errno. */
int context_instruction(pid_t tid, uint64_t *ret_address);
/* The bytes of one system call instruction, that the leave code may follow. */
extern const uint8_t context_call_instruction[];
extern const size_t context_call_instruction_bytes;

/* x86: true for a thread that runs 32-bit code. */
int context_is_compat(const struct thread_context *context);
