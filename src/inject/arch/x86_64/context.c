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
	return set_registers(tid, &regs);
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
	return set_registers(tid, &regs);
}

int context_block_signals(pid_t tid)
{
	return set_blocked(tid, ~0ULL);
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

int context_instruction(pid_t tid, uint64_t *ret_address)
{
	struct user_regs_struct regs;
	int error = get_registers(tid, &regs);

	if (error < 0)
		return error;
	*ret_address = regs.rip;
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

/*
 * The park code. Registers that system calls keep carry what it must know: rbx and r12 what to unmap, r13 the call's
 * result, r14 whether it was made.
 */
static const uint8_t park_code[] = {
	0x0f, 0x05,                      /* syscall */
	0x49, 0x89, 0xc5,                /* mov %rax, %r13 */
	0x48, 0x85, 0xdb,                /* test %rbx, %rbx */
	0x48, 0x0f, 0x44, 0xd8,          /* cmovz %rax, %rbx */
	0x41, 0xbe, 1,    0,    0, 0,    /* mov $1, %r14d */
	0x48, 0x8d, 0x3d, 0,    0, 0, 0, /* lea no_signals(%rip), %rdi */
	0x31, 0xf6,                      /* xor %esi, %esi */
	0x48, 0x8d, 0x15, 0,    0, 0, 0, /* lea patience(%rip), %rdx */
	0x41, 0xba, 8,    0,    0, 0,    /* mov $8, %r10d: bytes of a signal set */
	0xb8, 0x80, 0,    0,    0,       /* mov $128, %eax: rt_sigtimedwait, which leaves restart blocks alone */
	0x0f, 0x05,                      /* syscall */
	0x48, 0x89, 0xdf,                /* mov %rbx, %rdi */
	0x4c, 0x89, 0xe6,                /* mov %r12, %rsi */
	0xb8, 0x0b, 0,    0,    0,       /* mov $11, %eax: munmap */
	0x0f, 0x05,                      /* syscall; the leave code follows */
};

enum {
	PARK_NO_SIGNALS = PARK_CODE_BYTES - 24, /* 8 bytes, then seconds and nanoseconds */
	PARK_PATIENCE = PARK_CODE_BYTES - 16,
	PARK_SET_OPERAND = 21, /* of the two lea */
	PARK_TIME_OPERAND = 30,
	PARK_WAIT_END = 47,
	PARK_UNMAP_CALL = 58,
};

static void put_relative(uint8_t *code, size_t operand, size_t target)
{
	int32_t distance = target - (operand + sizeof(distance));

	memcpy(code + operand, &distance, sizeof(distance));
}

size_t context_park_code(const struct thread_context *context, uint64_t address, uint64_t patience_ns, uint8_t *code)
{
	const uint64_t second_ns = 1000000000, patience[] = {patience_ns / second_ns, patience_ns % second_ns};

	_Static_assert(sizeof(park_code) == PARK_UNMAP_CALL + 2, "the offsets above are of this code");
	_Static_assert(sizeof(park_code) + LEAVE_CODE_BYTES <= PARK_NO_SIGNALS, "the page's end has room for it");
	memset(code, 0, PARK_CODE_BYTES);
	memcpy(code, park_code, sizeof(park_code));
	put_relative(code, PARK_SET_OPERAND, PARK_NO_SIGNALS);
	put_relative(code, PARK_TIME_OPERAND, PARK_PATIENCE);
	memcpy(code + PARK_PATIENCE, patience, sizeof(patience));
	context_leave_code(context, address + sizeof(park_code), code + sizeof(park_code));
	return PARK_UNMAP_CALL;
}

int context_call_parked(pid_t tid, const struct thread_context *original, uint64_t code, long number,
			const int64_t args[6], uint64_t unmap, uint64_t unmap_bytes)
{
	struct thread_context with_unmap = *original;

	with_unmap.regs.rbx = unmap;
	with_unmap.regs.r12 = unmap_bytes;
	with_unmap.regs.r14 = 0;
	return context_redirect_to_call(tid, &with_unmap, code, number, args);
}

int context_parked_result(pid_t tid, uint64_t code, int64_t *ret_result)
{
	struct user_regs_struct regs;
	int error = get_registers(tid, &regs);

	if (error < 0)
		return error;
	if (regs.rip < code || regs.rip > code + PARK_WAIT_END)
		return -ETIME;
	if (!regs.r14)
		return 0;
	*ret_result = regs.r13;
	return 1;
}
