/* SPDX-License-Identifier: Apache-2.0 */
/* The signal that a thread asked for when its parent dies. A change of credentials takes it away, so it comes later. */
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "kinds/task/seccomp.h"
#include "kinds/task/task_kind.h"

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	remote_t *signal = arena_alloc(&dump->arena, sizeof(*signal));

	*signal = program_reserve(program, sizeof(int));
	PROGRAM_CALL(program, SYS_prctl, PR_GET_PDEATHSIG, signal->address);
	program_describe(program, "prctl(PR_GET_PDEATHSIG)");
	*state = signal;
	return 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	int signal = *(const int *)program_data(program, *(remote_t *)state);

	if (signal) {
		thread->core->thread_core->has_pdeath_sig = true;
		thread->core->thread_core->pdeath_sig = signal;
	}
	return 0;
}

/* Also when it has none: the process was made with one, so that it ends with criu. */
static void plan(const CoreEntry *thread, struct program *program)
{
	PROGRAM_CALL(program, SYS_prctl, PR_SET_PDEATHSIG,
		     thread->thread_core->has_pdeath_sig ? thread->thread_core->pdeath_sig : 0);
	program_describe(program, "prctl(PR_SET_PDEATHSIG)");
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	if (!seccomp_is_late(task, thread, tid))
		plan(thread, program);
	return 0;
}

static int plan_last_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread,
			    pid_t tid, struct program *program)
{
	if (seccomp_is_late(task, thread, tid))
		plan(thread, program);
	return 0;
}

const struct task_kind pdeath_signal_kind = {
	.name = "parent-death signal",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.plan_thread = plan_thread,
	.plan_last_thread = plan_last_thread,
};
