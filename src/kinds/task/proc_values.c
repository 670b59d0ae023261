/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers that a process has in files of /proc: how willingly the kernel kills it when memory is short, what its
 * core would hold, who logged in, and the nice value of its session among others (autogroup of sched(7)). Read from
 * outside, written by the process itself while it is criu: the pid that criu sees need not be the one of the images.
 */
#include <fcntl.h>
#include <limits.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"
#include "kinds/task/process_facts.h"
#include "kinds/task/task_kind.h"

static int parse_number(const char *text, int base, long long *ret_value)
{
	char *end;
	long long value = strtoll(text, &end, base);
	if (end == text)
		return -EPROTO;
	*ret_value = value;
	return 0;
}

static int take_number(struct dump_task *task, enum process_text which, int base, long long *ret_value)
{
	_cleanup_free_ char *text = NULL;
	int error = process_facts_take(task, which, &text, NULL);

	return error ? error : parse_number(text, base, ret_value);
}

/* "/autogroup-25 nice 5"; nothing if the kernel has no such groups. */
static void keep_session_nice(struct dump_task *task)
{
	_cleanup_free_ char *text = NULL;
	int nice;

	if (process_facts_take(task, PROCESS_AUTOGROUP, &text, NULL) < 0 ||
	    sscanf(text, "/autogroup-%*u nice %d", &nice) != 1 || !nice)
		return;
	task->core->tc->has_autogroup_nice = true;
	task->core->tc->autogroup_nice = nice;
}

static int collect(struct dump *dump, struct dump_task *task)
{
	TaskCoreEntry *core = task->core->tc;
	long long value;

	if (task->state == TASK_STATE_DEAD)
		return 0;
	int error = take_number(task, PROCESS_OOM_SCORE_ADJ, 10, &value);
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-oom", dump_task_name(dump, task), NULL,
				  "cannot read its oom_score_adj");
	core->has_oom_score_adj = true;
	core->oom_score_adj = value;
	/* Kernels without audit or without cores do not have these. */
	if (!take_number(task, PROCESS_LOGINUID, 10, &value)) {
		core->has_loginuid = true;
		core->loginuid = value;
	}
	if (!take_number(task, PROCESS_COREDUMP_FILTER, 16, &value)) {
		core->has_coredump_filter = true;
		core->coredump_filter = value;
	}
	keep_session_nice(task);
	return 0;
}

/* Writes @value if the file says another; failure is told and not fatal: the task works without. */
static void set_number(struct restore *restore, const struct restore_task *task, const char *path, int base,
		       long long value)
{
	_cleanup_free_ char *before = NULL;
	char text[32];
	long long now;

	if (!proc_read_text(AT_FDCWD, path, &before, NULL) && !parse_number(before, base, &now) && now == value)
		return;
	snprintf(text, sizeof(text), base == 16 ? "0x%llx" : "%lld", value);
	int error = write_text_at(AT_FDCWD, path, text);
	if (error < 0)
		log_warn("%s: cannot set %s to %s: error %d", restore_task_name(restore, task), path, text, -error);
}

/* A fork has the values of its creator, which has set its own by then. */
static int enter(struct restore *restore, const struct restore_task *task)
{
	static const TaskCoreEntry none = TASK_CORE_ENTRY__INIT;
	const TaskCoreEntry *core = task->core->tc, *born = restore->creator ? restore->creator->core->tc : &none;

	if (task->state == TASK_STATE_DEAD)
		return 0;
	if (core->has_oom_score_adj && !(born->has_oom_score_adj && born->oom_score_adj == core->oom_score_adj))
		set_number(restore, task, "/proc/self/oom_score_adj", 10, core->oom_score_adj);
	if (core->has_loginuid && core->loginuid != UINT_MAX &&
	    !(born->has_loginuid && born->loginuid == core->loginuid))
		set_number(restore, task, "/proc/self/loginuid", 10, core->loginuid);
	if (core->has_coredump_filter && !(born->has_coredump_filter && born->coredump_filter == core->coredump_filter))
		set_number(restore, task, "/proc/self/coredump_filter", 16, core->coredump_filter);
	return 0;
}

/* Not in `enter`: the session is made later. This still runs as criu, which may set what the task may not. */
static int plan(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const TaskCoreEntry *core = task->core->tc;
	char text[16];

	if (!core->has_autogroup_nice)
		return 0;
	snprintf(text, sizeof(text), "%d", core->autogroup_nice);
	int error = write_text_at(AT_FDCWD, "/proc/self/autogroup", text);
	if (error < 0)
		log_warn("%s: its session cannot have the nice value %s: error %d", restore_task_name(restore, task),
			 text, -error);
	return 0;
}

const struct task_kind proc_values_kind = {
	.name = "values of /proc",
	.collect = collect,
	.enter = enter,
	.plan = plan,
};
