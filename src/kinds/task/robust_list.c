/* SPDX-License-Identifier: Apache-2.0 */
/* The list of robust futexes that the kernel walks when a thread dies. */
#include <linux/futex.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

struct robust_list_state {
	remote_t head, length;
};

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	struct robust_list_state *asked = arena_alloc(&dump->arena, sizeof(*asked));

	asked->head = program_reserve(program, sizeof(uint64_t));
	asked->length = program_reserve(program, sizeof(uint64_t));
	PROGRAM_CALL(program, SYS_get_robust_list, 0, asked->head.address, asked->length.address);
	program_describe(program, "get_robust_list");
	*state = asked;
	return 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	const struct robust_list_state *asked = state;

	thread->core->thread_core->futex_rla = *(const uint64_t *)program_data(program, asked->head);
	thread->core->thread_core->futex_rla_len = *(const uint64_t *)program_data(program, asked->length);
	return 0;
}

/* Also without a list: the process inherited the one of criu's libc, at an address that means something else now. */
static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	uint64_t head = thread->thread_core->futex_rla;
	uint32_t length = head ? thread->thread_core->futex_rla_len : sizeof(struct robust_list_head);

	PROGRAM_CALL(program, SYS_set_robust_list, head, length);
	program_describe(program, "set_robust_list");
	return 0;
}

const struct task_kind robust_list_kind = {
	.name = "robust futex list",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.plan_thread = plan_thread,
};
