/* SPDX-License-Identifier: Apache-2.0 */
/* The execution domain: no address randomisation, readable implies executable, and the like. Threads inherit it. */
#include <sys/personality.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

enum { PERSONALITY_QUERY = -1 };

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	size_t *step = arena_alloc(&dump->arena, sizeof(*step));

	*step = PROGRAM_CALL(program, SYS_personality, (uint32_t)PERSONALITY_QUERY);
	program_describe(program, "personality");
	*state = step;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	task->core->tc->personality = program_result(program, *(size_t *)state);
	return 0;
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	PROGRAM_CALL(program, SYS_personality, task->core->tc->personality);
	program_describe(program, "personality");
	return 0;
}

const struct task_kind personality_kind = {
	.name = "personality",
	.inspect = inspect,
	.inspected = inspected,
	.plan_thread = plan_thread,
};
