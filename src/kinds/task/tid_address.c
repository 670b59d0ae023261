/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the kernel clears the thread's number and wakes a waiter when the thread ends (CLONE_CHILD_CLEARTID): what
 * pthread_join() waits on.
 */
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	remote_t *address = arena_alloc(&dump->arena, sizeof(*address));

	*address = program_reserve(program, sizeof(uint64_t));
	PROGRAM_CALL(program, SYS_prctl, PR_GET_TID_ADDRESS, address->address);
	program_describe(program, "prctl(PR_GET_TID_ADDRESS), for which the kernel needs CONFIG_CHECKPOINT_RESTORE,");
	*state = address;
	return 0;
}

/* The rest of thread_info comes later (registers.c) and keeps what is here. */
static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	if (!thread->core->thread_info)
		thread->core->thread_info = arena_message(&dump->arena, ThreadInfoX86, thread_info_x86);
	thread->core->thread_info->clear_tid_addr = *(const uint64_t *)program_data(program, *(remote_t *)state);
	return 0;
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	if (!thread->thread_info)
		return 0;
	PROGRAM_CALL(program, SYS_set_tid_address, thread->thread_info->clear_tid_addr);
	program_describe(program, "set_tid_address");
	return 0;
}

const struct task_kind tid_address_kind = {
	.name = "tid address",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.plan_thread = plan_thread,
};
