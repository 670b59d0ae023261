/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether orphans of the subtree become this process's children. Set early, as some children of the images come to
 * it that way; taken away last.
 */
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	remote_t *flag = arena_alloc(&dump->arena, sizeof(*flag));

	*flag = program_reserve(program, sizeof(int));
	PROGRAM_CALL(program, SYS_prctl, PR_GET_CHILD_SUBREAPER, flag->address);
	program_describe(program, "prctl(PR_GET_CHILD_SUBREAPER)");
	*state = flag;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	task->core->tc->has_child_subreaper = true;
	task->core->tc->child_subreaper = *(const int *)program_data(program, *(remote_t *)state);
	return 0;
}

static bool is_wanted(const struct restore_task *task)
{
	return task->core->tc->has_child_subreaper && task->core->tc->child_subreaper;
}

static int enter(struct restore *restore, const struct restore_task *task)
{
	if (is_wanted(task) && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return fail_errno(&restore->failure, errno, "task-subreaper", restore_task_name(restore, task), NULL,
				  "prctl(PR_SET_CHILD_SUBREAPER)");
	return 0;
}

static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	PROGRAM_CALL(program, SYS_prctl, PR_SET_CHILD_SUBREAPER, is_wanted(task));
	program_describe(program, "prctl(PR_SET_CHILD_SUBREAPER)");
	return 0;
}

const struct task_kind child_subreaper_kind = {
	.name = "child subreaper",
	.inspect = inspect,
	.inspected = inspected,
	.enter = enter,
	.plan_last = plan_last,
};
