/* SPDX-License-Identifier: Apache-2.0 */
/* The bit by which a thread gave up gaining privileges in exec. It cannot be taken back. Dumped by creds.c. */
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "kinds/task/task_kind.h"

static bool is_wanted(const CoreEntry *thread)
{
	const CredsEntry *creds = thread->thread_core->creds;

	return creds && creds->has_no_new_privs && creds->no_new_privs;
}

static int check(struct restore *restore, const struct restore_task *task)
{
	if (task->state != TASK_STATE_DEAD && !is_wanted(task->core) && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
		log_warn("%s: criu runs with no_new_privs set, so the task will have it too",
			 restore_task_name(restore, task));
	return 0;
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	if (!is_wanted(thread))
		return 0;
	PROGRAM_CALL(program, SYS_prctl, PR_SET_NO_NEW_PRIVS, 1);
	program_describe(program, "prctl(PR_SET_NO_NEW_PRIVS)");
	return 0;
}

const struct task_kind no_new_privs_kind = {
	.name = "no new privileges",
	.check = check,
	.plan_thread = plan_thread,
};
