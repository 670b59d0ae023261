/* SPDX-License-Identifier: Apache-2.0 */
/* The messages that every other kind of task state relies on: checked once, so that the others need not. */
#include <string.h>

#include "kinds/task/task_kind.h"

enum { CAPABILITY_WORDS = 2, GROUPS_MAX = 65536, COMM_MAX = 15, SIGINFO_BYTES = 128 };

static int check_signals(struct restore *restore, const SignalQueueEntry *queue)
{
	for (size_t i = 0; queue && i < queue->n_signals; i++)
		if (queue->signals[i]->siginfo.len != SIGINFO_BYTES)
			return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
				    "a pending signal has %zu bytes of siginfo", queue->signals[i]->siginfo.len);
	return 0;
}

static int check_creds(struct restore *restore, const CredsEntry *creds)
{
	if (!creds)
		return 0;
	if (creds->n_cap_inh > CAPABILITY_WORDS || creds->n_cap_prm > CAPABILITY_WORDS ||
	    creds->n_cap_eff > CAPABILITY_WORDS || creds->n_cap_bnd > CAPABILITY_WORDS ||
	    creds->n_cap_amb > CAPABILITY_WORDS)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "a capability set is too long");
	if (creds->n_groups > GROUPS_MAX)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "it has %zu groups", creds->n_groups);
	if ((creds->lsm_profile && *creds->lsm_profile) || (creds->lsm_sockcreate && *creds->lsm_sockcreate))
		return fail(&restore->failure, EOPNOTSUPP, "task-lsm", NULL, "restore it with CRIU",
			    "it was confined by a security module (%s)",
			    creds->lsm_profile ? creds->lsm_profile : creds->lsm_sockcreate);
	return 0;
}

static int check_thread(struct restore *restore, const CoreEntry *core)
{
	const ThreadCoreEntry *thread = core ? core->thread_core : NULL;

	if (!thread)
		return fail(&restore->failure, EINVAL, "image-missing", NULL, NULL,
			    "a thread's core has no thread_core");
	if (thread->comm && strlen(thread->comm) > COMM_MAX)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "a thread's name is too long");
	int error = check_signals(restore, thread->signals_p);
	return error ? error : check_creds(restore, thread->creds);
}

static int check(struct restore *restore, const struct restore_task *task)
{
	int error = 0;

	if (!task->core || !task->core->tc)
		error = fail(&restore->failure, EINVAL, "image-missing", NULL, NULL, "its core has no tc");
	if (!error && task->state == TASK_STATE_DEAD)
		return 0;
	if (!error && strlen(task->core->tc->comm) > COMM_MAX)
		error = fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "its name is too long");
	if (!error)
		error = check_signals(restore, task->core->tc->signals_s);
	for (size_t i = 0; i < task->thread_count && !error; i++)
		error = check_thread(restore, task->thread_cores[i]);
	return error ? fail_in(&restore->failure, "%s", restore_task_name(restore, task)) : 0;
}

const struct task_kind core_entries_kind = {
	.name = "core",
	.check = check,
};
