/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the process may leave a core and be looked at by its own user. It belongs to the memory and the kernel
 * resets it whenever a thread's ids change, so it is set when all threads have their credentials.
 *
 * 2 (a core that only root may read) cannot be asked for: it appears with a change of ids while fs.suid_dumpable
 * is 2. Where it would not appear by itself, the nearest value that gives nothing away is 0.
 */
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/task/task_kind.h"

enum { DUMPABLE_NO = 0, DUMPABLE_BY_USER = 1, DUMPABLE_BY_ROOT = 2 };

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	size_t *step = arena_alloc(&dump->arena, sizeof(*step));

	*step = PROGRAM_CALL(program, SYS_prctl, PR_GET_DUMPABLE);
	program_describe(program, "prctl(PR_GET_DUMPABLE)");
	*state = step;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	task->mm->has_dumpable = true;
	task->mm->dumpable = program_result(program, *(size_t *)state);
	return 0;
}

/* True if restoring the credentials makes the kernel set 2. */
static bool appears_by_itself(const struct restore_task *task)
{
	const CredsEntry *creds = task->core->thread_core->creds;
	_cleanup_free_ char *text = NULL;

	if (!creds || (creds->euid == geteuid() && creds->egid == getegid()))
		return false;
	return !read_text_at(AT_FDCWD, "/proc/sys/fs/suid_dumpable", &text, NULL) && atoi(text) == DUMPABLE_BY_ROOT;
}

static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	int dumpable = task->mm && task->mm->has_dumpable ? task->mm->dumpable : DUMPABLE_BY_USER;

	if (dumpable == DUMPABLE_BY_ROOT && appears_by_itself(task))
		return 0;
	if (dumpable != DUMPABLE_NO && dumpable != DUMPABLE_BY_USER) {
		log_warn("%s: its core was readable for root only; that cannot be set here, it will leave none",
			 restore_task_name(restore, task));
		dumpable = DUMPABLE_NO;
	}
	PROGRAM_CALL(program, SYS_prctl, PR_SET_DUMPABLE, dumpable);
	program_describe(program, "prctl(PR_SET_DUMPABLE)");
	return 0;
}

const struct task_kind dumpable_kind = {
	.name = "dumpable",
	.inspect = inspect,
	.inspected = inspected,
	.plan_last = plan_last,
};
