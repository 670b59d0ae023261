/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The alternate signal stack of a thread. SS_ONSTACK is not state but a statement about the stack pointer; the
 * interpreter runs on a stack of its own, so it never appears, and a handler that was interrupted on the alternate
 * stack is on it again when the registers are back.
 */
#include <signal.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	remote_t *stack = arena_alloc(&dump->arena, sizeof(*stack));

	*stack = program_reserve(program, sizeof(stack_t));
	PROGRAM_CALL(program, SYS_sigaltstack, 0, stack->address);
	program_describe(program, "sigaltstack");
	*state = stack;
	return 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	ThreadSasEntry *entry = arena_message(&dump->arena, ThreadSasEntry, thread_sas_entry);
	const stack_t *stack = program_data(program, *(remote_t *)state);

	entry->ss_sp = (uintptr_t)stack->ss_sp;
	entry->ss_size = stack->ss_size;
	entry->ss_flags = stack->ss_flags;
	thread->core->thread_core->sas = entry;
	return 0;
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	const ThreadSasEntry *entry = thread->thread_core->sas;
	stack_t stack = {.ss_flags = SS_DISABLE};

	if (entry) {
		stack.ss_sp = (void *)(uintptr_t)entry->ss_sp;
		stack.ss_size = entry->ss_size;
		stack.ss_flags = entry->ss_flags & (SS_DISABLE | SS_AUTODISARM);
	}
	remote_t where = program_copy(program, &stack, sizeof(stack));
	PROGRAM_CALL(program, SYS_sigaltstack, where.address, 0);
	program_describe(program, "sigaltstack");
	return 0;
}

const struct task_kind sigaltstack_kind = {
	.name = "alternate signal stack",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.plan_thread = plan_thread,
};
