/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupted system calls.
 *
 * A thread that was stopped in a system call shows one of the kernel's private results. Most say "do it again": the
 * registers in the images point at the instruction again. -ERESTART_RESTARTBLOCK says that the kernel keeps what is
 * left to wait in the task itself, which no image can hold. Restore lets the new thread enter the same call with the
 * remaining time while an interruption is pending: the kernel makes the restart block itself, and the thread goes on
 * from registers that look as if nothing had happened.
 * The time left is known where the kernel has written it (nanosleep's second argument), and from the restart block
 * itself if the kernel lets us read it (kernel/restart_blocks.h). Elsewhere the whole time is taken again: a wait may
 * end late, never early.
 */
#include "kinds/task/restart.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "base/fd.h"
#include "inject/ptrace.h"
#include "kernel/restart_blocks.h"

enum {
	RESTART_SYS = -512,
	RESTART_NO_INTERRUPT = -513,
	RESTART_NO_HANDLER = -514,
	RESTART_BLOCK = -516,
	INSTRUCTION_BYTES = 2,
};

/* The calls that leave a restart block. */
static const uint32_t blocking_calls[] = {SYS_nanosleep, SYS_clock_nanosleep, SYS_poll, SYS_futex};

#define NS_PER_SECOND 1000000000ULL
#define NS_PER_MS 1000000ULL

static bool read_time(pid_t pid, uint64_t address, uint64_t *ret_ns)
{
	struct timespec time;
	struct iovec local = {&time, sizeof(time)}, remote = {(void *)address, sizeof(time)};

	if (!address || process_vm_readv(pid, &local, 1, &remote, 1, 0) != sizeof(time) || time.tv_sec < 0 ||
	    time.tv_nsec < 0 || (uint64_t)time.tv_nsec >= NS_PER_SECOND)
		return false;
	*ret_ns = (uint64_t)time.tv_sec * NS_PER_SECOND + time.tv_nsec;
	return true;
}

/*
 * A call that was interrupted before, by an earlier dump or a stop from a terminal, goes on as restart_syscall, and
 * shows that number; its arguments are still in the registers. The number stands in the code: compilers and libraries
 * load it right before the call ("mov $N, %eax; syscall").
 */
static uint64_t number_in_code(pid_t pid, const struct user_regs_struct *regs)
{
	enum { WINDOW = 32, MOVE_EAX = 0xb8, MOVE_BYTES = 5 };
	uint8_t code[WINDOW];
	struct iovec local = {code, sizeof(code)}, remote = {(void *)(regs->rip - INSTRUCTION_BYTES - WINDOW), WINDOW};

	if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != WINDOW)
		return SYS_restart_syscall;
	for (int at = WINDOW - MOVE_BYTES; at >= 0; at--) {
		uint32_t number;
		memcpy(&number, code + at + 1, sizeof(number));
		for (size_t i = 0; code[at] == MOVE_EAX && i < ARRAY_SIZE(blocking_calls); i++)
			if (number == blocking_calls[i])
				return number;
	}
	return SYS_restart_syscall;
}

/* A number that came from elsewhere is told by arguments that only one of the calls can have. */
static uint64_t number_of_arguments(pid_t pid, const struct user_regs_struct *regs)
{
	uint64_t ns;

	if (regs->rdi < 16 && !regs->rsi && read_time(pid, regs->rdx, &ns))
		return SYS_clock_nanosleep;
	if ((regs->rsi & FUTEX_CMD_MASK) == FUTEX_WAIT && read_time(pid, regs->r10, &ns))
		return SYS_futex;
	if (read_time(pid, regs->rdi, &ns) && (!regs->rsi || regs->rsi > 0xffff))
		return SYS_nanosleep;
	return regs->rsi < 1 << 20 ? SYS_poll : SYS_restart_syscall;
}

static uint64_t interrupted_call(pid_t pid, const struct user_regs_struct *regs)
{
	uint64_t number = regs->orig_rax == SYS_restart_syscall ? number_in_code(pid, regs) : regs->orig_rax;

	return number == SYS_restart_syscall ? number_of_arguments(pid, regs) : number;
}

/* What the kernel has written out of what was left. */
static bool written_time(pid_t pid, const struct user_regs_struct *regs, uint64_t *ret_ns)
{
	return (regs->orig_rax == SYS_nanosleep && read_time(pid, regs->rsi, ret_ns)) ||
	       (regs->orig_rax == SYS_clock_nanosleep && read_time(pid, regs->r10, ret_ns));
}

/* What the call was asked for. */
static bool asked_time(pid_t pid, const struct user_regs_struct *regs, uint64_t *ret_ns)
{
	switch (regs->orig_rax) {
	case SYS_nanosleep:
		return read_time(pid, regs->rdi, ret_ns);
	case SYS_clock_nanosleep:
		return read_time(pid, regs->rdx, ret_ns);
	case SYS_poll:
		if ((int)regs->rdx < 0)
			return false;
		*ret_ns = (uint64_t)(int)regs->rdx * NS_PER_MS;
		return true;
	case SYS_futex:
		/* Only plain FUTEX_WAIT counts its timeout from now; the others are repeated as they are. */
		return (regs->rsi & FUTEX_CMD_MASK) == FUTEX_WAIT && read_time(pid, regs->r10, ret_ns);
	}
	return false;
}

/* What the call had left, or at least what it was asked for. */
static bool remaining_time(struct dump *dump, const struct dump_thread *thread, const struct user_regs_struct *regs,
			   uint64_t *ret_ns)
{
	const uint64_t args[3] = {regs->rdi, regs->rsi, regs->rdx};
	uint64_t left_ns;

	if (written_time(thread->task->pid, regs, ret_ns))
		return true;
	if (!asked_time(thread->task->pid, regs, ret_ns))
		return false;
	if (!dump->restart_blocks)
		dump->restart_blocks = restart_blocks_open();
	if (restart_blocks_remaining(dump->restart_blocks, thread->tid, regs->orig_rax, args, &left_ns) &&
	    left_ns < *ret_ns)
		*ret_ns = left_ns;
	return true;
}

int restart_dump(struct dump *dump, struct dump_thread *thread, struct thread_context *context)
{
	struct user_regs_struct *regs = &context->regs;
	uint64_t remaining_ns;

	if ((int64_t)regs->orig_rax < 0)
		return 0;
	regs->orig_rax = interrupted_call(thread->task->pid, regs);
	switch ((int64_t)regs->rax) {
	case RESTART_SYS:
	case RESTART_NO_INTERRUPT:
	case RESTART_NO_HANDLER:
		thread->core->thread_core->has_restart_result = true;
		thread->core->thread_core->restart_result = regs->rax;
		break;
	case RESTART_BLOCK:
		if (remaining_time(dump, thread, regs, &remaining_ns)) {
			thread->core->thread_core->has_restart_remaining_ns = true;
			thread->core->thread_core->restart_remaining_ns = remaining_ns;
			regs->rax = SYS_restart_syscall;
			regs->rip -= INSTRUCTION_BYTES;
			return 0;
		}
		break;
	default:
		return 0;
	}
	regs->rax = regs->orig_rax;
	regs->rip -= INSTRUCTION_BYTES;
	return 0;
}

bool restart_is_needed(const CoreEntry *core)
{
	return core->thread_core && core->thread_core->has_restart_remaining_ns;
}

static bool is_private_result(int64_t result)
{
	return result == RESTART_SYS || result == RESTART_NO_INTERRUPT || result == RESTART_NO_HANDLER ||
	       result == RESTART_BLOCK;
}

void restart_context(const CoreEntry *core, const int64_t *armed_result, struct thread_context *context)
{
	const ThreadCoreEntry *thread = core->thread_core;
	int64_t result = armed_result                           ? *armed_result
			 : thread && thread->has_restart_result ? thread->restart_result
								: 0;

	if (armed_result || is_private_result(result)) {
		context->regs.rip += INSTRUCTION_BYTES;
		context->regs.rax = result;
	}
	/* Without a private result the kernel must not think of a system call at all. */
	if (!is_private_result(result))
		context->regs.orig_rax = -1;
}

static int write_time(pid_t pid, uint64_t address, uint64_t ns)
{
	struct timespec time = {.tv_sec = ns / NS_PER_SECOND, .tv_nsec = ns % NS_PER_SECOND};
	struct iovec local = {&time, sizeof(time)}, remote = {(void *)address, sizeof(time)};

	return process_vm_writev(pid, &local, 1, &remote, 1, 0) == sizeof(time) ? 0 : -errno;
}

/* The call begins with an interruption already pending, so it sets itself up, sees it and returns. */
static int interrupt_call(pid_t tid, const struct thread_context *context, uint64_t call, long number,
			  const int64_t args[6], int64_t *ret_result)
{
	int error = context_redirect_to_call(tid, context, call, number, args);

	if (!error)
		error = thread_run_to_syscall(tid);
	if (!error && ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0)
		error = -errno;
	if (!error)
		error = thread_run_to_syscall(tid);
	return error ? error : context_call_result(tid, ret_result);
}

int restart_arm(struct restore *restore, const CoreEntry *core, pid_t pid, pid_t tid, uint64_t call, uint64_t scratch,
		int64_t *ret_result)
{
	const UserX86RegsEntry *regs = core->thread_info->gpregs;
	uint64_t remaining_ns = core->thread_core->restart_remaining_ns;
	int64_t args[6] = {regs->di, regs->si, regs->dx, regs->r10, regs->r8, regs->r9};
	struct thread_context context;

	switch (regs->orig_ax) {
	case SYS_nanosleep:
		args[0] = scratch;
		break;
	case SYS_clock_nanosleep:
		args[2] = scratch;
		break;
	case SYS_poll:
		args[2] = (remaining_ns + NS_PER_MS - 1) / NS_PER_MS;
		break;
	case SYS_futex:
		args[3] = scratch;
		break;
	default:
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
			    "thread %d: system call %lu has no restart block", tid, regs->orig_ax);
	}
	int error = write_time(pid, scratch, remaining_ns);
	if (!error)
		error = context_save(tid, &context);
	if (!error)
		error = interrupt_call(tid, &context, call, regs->orig_ax, args, ret_result);
	return error ? fail_errno(&restore->failure, error, "restore-restart", NULL, NULL,
				  "thread %d: cannot enter its interrupted system call again", tid)
		     : 0;
}
