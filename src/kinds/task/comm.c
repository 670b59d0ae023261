/* SPDX-License-Identifier: Apache-2.0 */
/* The name of a thread. Asked inside, where it costs one call of the batch instead of a file of /proc per thread. */
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

enum { COMM_BYTES = 16 };

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	remote_t *name = arena_alloc(&dump->arena, sizeof(*name));

	*name = program_reserve(program, COMM_BYTES);
	PROGRAM_CALL(program, SYS_prctl, PR_GET_NAME, name->address);
	program_describe(program, "prctl(PR_GET_NAME)");
	*state = name;
	return 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	char name[COMM_BYTES];

	memcpy(name, program_data(program, *(remote_t *)state), sizeof(name));
	name[COMM_BYTES - 1] = '\0';
	thread->core->thread_core->comm = arena_strdup(&dump->arena, name);
	if (thread->core->tc)
		thread->core->tc->comm = thread->core->thread_core->comm;
	return 0;
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	const char *name = thread->thread_core->comm ? thread->thread_core->comm : task->core->tc->comm;
	remote_t where = program_copy(program, name, strlen(name) + 1);

	PROGRAM_CALL(program, SYS_prctl, PR_SET_NAME, where.address);
	program_describe(program, "prctl(PR_SET_NAME)");
	return 0;
}

const struct task_kind comm_kind = {
	.name = "comm",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.plan_thread = plan_thread,
};
