/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the process wants no transparent huge pages. Since 6.18 it may except memory it gave advice for; that bit
 * is an extension of the images.
 */
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

enum { THP_DISABLED = 1 };

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	size_t *step = arena_alloc(&dump->arena, sizeof(*step));

	*step = PROGRAM_TRY(program, SYS_prctl, PR_GET_THP_DISABLE);
	*state = step;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	int64_t value = program_result(program, *(size_t *)state);

	task->mm->has_thp_disabled = true;
	task->mm->thp_disabled = value > 0;
	if (value > THP_DISABLED) {
		task->mm->has_thp_disable_flags = true;
		task->mm->thp_disable_flags = value & ~THP_DISABLED;
	}
	return 0;
}

/* Also when it is off: the process may have inherited criu's. */
static int plan(struct restore *restore, const struct restore_task *task, struct program *program)
{
	bool disabled = task->mm && task->mm->has_thp_disabled && task->mm->thp_disabled;
	uint32_t flags = disabled && task->mm->has_thp_disable_flags ? task->mm->thp_disable_flags : 0;

	if (disabled) {
		PROGRAM_CALL(program, SYS_prctl, PR_SET_THP_DISABLE, 1, flags);
		program_describe(program, "prctl(PR_SET_THP_DISABLE)");
	} else {
		PROGRAM_TRY(program, SYS_prctl, PR_SET_THP_DISABLE, 0);
	}
	return 0;
}

const struct task_kind thp_disable_kind = {
	.name = "transparent huge pages",
	.inspect = inspect,
	.inspected = inspected,
	.plan = plan,
};
