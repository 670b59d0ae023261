/* SPDX-License-Identifier: Apache-2.0 */
#include "inject/context.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum {
	RESTART_SYS = -512, /* -ERESTARTSYS … of the kernel, seen only through ptrace */
	RESTART_NO_INTERRUPT = -513,
	RESTART_NO_HANDLER = -514,
	RESTART_BLOCK = -516,
	SYSCALL_INSTRUCTION_BYTES = 2,
	FLAG_CARRY_TO_SIGN = 0xd5, /* CF PF AF ZF SF, as SAHF sets them from AH */
	FLAG_DIRECTION = 1 << 10,
	FLAG_OVERFLOW = 1 << 11,
	USER_CODE_64 = 0x33,
};

const uint8_t context_call_instruction[] = {0x0f, 0x05};
const size_t context_call_instruction_bytes = sizeof(context_call_instruction);

static int set_registers(pid_t tid, const struct user_regs_struct *regs)
{
	struct iovec vector = {(void *)regs, sizeof(*regs)};

	return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &vector) < 0 ? -errno : 0;
}

static int get_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec vector = {regs, sizeof(*regs)};

	return ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &vector) < 0 ? -errno : 0;
}

static int set_blocked(pid_t tid, uint64_t blocked)
{
	return ptrace(PTRACE_SETSIGMASK, tid, sizeof(blocked), &blocked) < 0 ? -errno : 0;
}

/*
 * Calls that answer EINTR to any interruption, also to one that the program cannot see. No handler has run (the
 * thread would stand in it), so the kernel is told to repeat the call instead; if a handler does run first, the
 * program gets its EINTR.
 */
static void hide_interruption(struct user_regs_struct *regs)
{
	static const long never_restarted[] = {
		SYS_epoll_wait,    SYS_epoll_pwait,     SYS_epoll_pwait2,   SYS_semop,
		SYS_semtimedop,    SYS_msgsnd,          SYS_msgrcv,         SYS_io_getevents,
		SYS_io_pgetevents, SYS_rt_sigtimedwait, SYS_io_uring_enter,
	};

	if ((int64_t)regs->rax != -EINTR || (int64_t)regs->orig_rax < 0)
		return;
	for (size_t i = 0; i < sizeof(never_restarted) / sizeof(never_restarted[0]); i++)
		if ((long)regs->orig_rax == never_restarted[i])
			regs->rax = RESTART_NO_HANDLER;
}

int context_save(pid_t tid, struct thread_context *ret_context)
{
	struct thread_context context = {};

	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof(context.blocked), &context.blocked) < 0)
		return -errno;
	int error = get_registers(tid, &context.regs);
	if (error < 0)
		return error;
	hide_interruption(&context.regs);
	*ret_context = context;
	return 0;
}

int context_restore(pid_t tid, const struct thread_context *context)
{
	int error = set_blocked(tid, context->blocked);

	return error < 0 ? error : set_registers(tid, &context->regs);
}

int context_redirect(pid_t tid, const struct thread_context *original, uint64_t code, uint64_t argument, uint64_t stack)
{
	struct user_regs_struct regs = original->regs;

	regs.orig_rax = -1;
	regs.rax = 0;
	regs.rip = code;
	regs.rdi = argument;
	/* As behind a call instruction: the ABI wants rsp + 8 aligned to 16. */
	if (stack)
		regs.rsp = (stack & ~15ULL) - 8;
	regs.eflags &= ~(unsigned long long)FLAG_DIRECTION;
	int error = set_registers(tid, &regs);
	return error < 0 ? error : set_blocked(tid, ~0ULL);
}

int context_redirect_to_call(pid_t tid, const struct thread_context *original, uint64_t code, long number,
			     const int64_t args[6])
{
	struct user_regs_struct regs = original->regs;

	regs.orig_rax = -1;
	regs.rax = number;
	regs.rip = code;
	regs.rdi = args[0];
	regs.rsi = args[1];
	regs.rdx = args[2];
	regs.r10 = args[3];
	regs.r8 = args[4];
	regs.r9 = args[5];
	int error = set_registers(tid, &regs);
	return error < 0 ? error : set_blocked(tid, ~0ULL);
}

int context_call_result(pid_t tid, int64_t *ret_result)
{
	struct user_regs_struct regs;
	int error = get_registers(tid, &regs);

	if (error < 0)
		return error;
	*ret_result = regs.rax;
	return 0;
}

int context_is_compat(const struct thread_context *context)
{
	return context->regs.cs != USER_CODE_64;
}

struct emitter {
	uint8_t *code;
	size_t length;
};

static void emit(struct emitter *e, const void *bytes, size_t count)
{
	memcpy(e->code + e->length, bytes, count);
	e->length += count;
}

static void emit_byte(struct emitter *e, uint8_t byte)
{
	emit(e, &byte, 1);
}

/* mov $value, %register; registers are numbered as the instruction set does: 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp … */
static void emit_move(struct emitter *e, unsigned reg, uint64_t value)
{
	emit_byte(e, reg < 8 ? 0x48 : 0x49);
	emit_byte(e, 0xb8 + (reg & 7));
	emit(e, &value, sizeof(value));
}

/* CF PF AF ZF SF through SAHF, OF by an addition that overflows or not, DF by its own instruction. */
static void emit_flags(struct emitter *e, uint64_t flags)
{
	static const uint8_t set_overflow[] = {0xb0, 0x7f, 0x04, 0x01}, clear_overflow[] = {0x31, 0xc0};

	if (flags & FLAG_OVERFLOW)
		emit(e, set_overflow, sizeof(set_overflow));
	else
		emit(e, clear_overflow, sizeof(clear_overflow));
	emit_byte(e, 0xb4);
	emit_byte(e, (flags & FLAG_CARRY_TO_SIGN) | 0x02);
	emit_byte(e, 0x9e);
	emit_byte(e, flags & FLAG_DIRECTION ? 0xfd : 0xfc);
}

/* The kernel would do this when the thread goes back to user mode from an interrupted system call. */
static void apply_restart(struct user_regs_struct *regs)
{
	if ((int64_t)regs->orig_rax < 0)
		return;
	switch ((int64_t)regs->rax) {
	case RESTART_SYS:
	case RESTART_NO_INTERRUPT:
	case RESTART_NO_HANDLER:
		regs->rax = regs->orig_rax;
		regs->rip -= SYSCALL_INSTRUCTION_BYTES;
		break;
	case RESTART_BLOCK:
		regs->rax = SYS_restart_syscall;
		regs->rip -= SYSCALL_INSTRUCTION_BYTES;
		break;
	}
}

size_t context_leave_code(const struct thread_context *context, uint64_t address, uint8_t *code)
{
	struct user_regs_struct regs = context->regs;
	struct emitter e = {code};
	enum { MASK_OFFSET = LEAVE_CODE_BYTES - 8 - 2, SIG_SETMASK_VALUE = 2, SIGNAL_SET_BYTES = 8 };
	static const uint8_t jump_to_next_quad[] = {0xff, 0x25, 0, 0, 0, 0};

	apply_restart(&regs);
	emit_move(&e, 4, regs.rsp);
	emit_move(&e, 0, SYS_rt_sigprocmask);
	emit_move(&e, 7, SIG_SETMASK_VALUE);
	emit_move(&e, 6, address + MASK_OFFSET);
	emit_move(&e, 2, 0);
	emit_move(&e, 10, SIGNAL_SET_BYTES);
	emit(&e, context_call_instruction, context_call_instruction_bytes);
	emit_flags(&e, regs.eflags);
	emit_move(&e, 0, regs.rax);
	emit_move(&e, 1, regs.rcx);
	emit_move(&e, 2, regs.rdx);
	emit_move(&e, 3, regs.rbx);
	emit_move(&e, 5, regs.rbp);
	emit_move(&e, 6, regs.rsi);
	emit_move(&e, 7, regs.rdi);
	emit_move(&e, 8, regs.r8);
	emit_move(&e, 9, regs.r9);
	emit_move(&e, 10, regs.r10);
	emit_move(&e, 11, regs.r11);
	emit_move(&e, 12, regs.r12);
	emit_move(&e, 13, regs.r13);
	emit_move(&e, 14, regs.r14);
	emit_move(&e, 15, regs.r15);
	emit(&e, jump_to_next_quad, sizeof(jump_to_next_quad));
	uint64_t rip = regs.rip;
	emit(&e, &rip, sizeof(rip));
	memcpy(code + MASK_OFFSET, &context->blocked, sizeof(context->blocked));
	return LEAVE_CODE_BYTES - 2;
}
