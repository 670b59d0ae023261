/* SPDX-License-Identifier: Apache-2.0 */
/* For which expedited memory barriers the process registered; without it membarrier(2) fails for its user. */
#include <linux/membarrier.h>
#include <sys/syscall.h>

#include "kernel/uapi.h"
#include "kinds/task/task_kind.h"

/* The registering commands, which are bits of a mask too. */
enum {
	REGISTRATIONS = MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED |
			MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE |
			MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ
};

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	size_t *step = arena_alloc(&dump->arena, sizeof(*step));

	/* Kernels before 6.3 cannot tell. */
	*step = PROGRAM_TRY(program, SYS_membarrier, MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0);
	*state = step;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	int64_t mask = program_result(program, *(size_t *)state);

	if (mask > 0) {
		task->core->tc->has_membarrier_registration_mask = true;
		task->core->tc->membarrier_registration_mask = mask;
	}
	return 0;
}

static int plan(struct restore *restore, const struct restore_task *task, struct program *program)
{
	uint32_t mask = task->core->tc->has_membarrier_registration_mask
				? task->core->tc->membarrier_registration_mask & REGISTRATIONS
				: 0;

	for (uint32_t bit = 1; bit && bit <= mask; bit <<= 1) {
		if (!(mask & bit))
			continue;
		PROGRAM_CALL(program, SYS_membarrier, bit, 0, 0);
		program_describe(program, "membarrier");
	}
	return 0;
}

const struct task_kind membarrier_kind = {
	.name = "membarrier",
	.inspect = inspect,
	.inspected = inspected,
	.plan = plan,
};
