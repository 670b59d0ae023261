/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sixteen resource limits of a process.
 *
 * Both ways from inside: from outside another user's limits need CAP_SYS_RESOURCE, which containers rarely give. They
 * come back in the very last program, when nothing is made any more that they could refuse. Raising a hard limit
 * needs that capability as well: it is tried early, while the process is criu, and what cannot be had is clamped.
 */
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "kinds/task/task_kind.h"

enum { LIMIT_COUNT = 16 };

static const char *const limit_names[LIMIT_COUNT] = {
	"CPU",     "FSIZE", "DATA",  "STACK",      "CORE",     "RSS",  "NPROC",  "NOFILE",
	"MEMLOCK", "AS",    "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
};

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	remote_t *limits = arena_alloc(&dump->arena, sizeof(*limits));

	*limits = program_reserve(program, LIMIT_COUNT * sizeof(struct rlimit));
	for (unsigned i = 0; i < LIMIT_COUNT; i++) {
		PROGRAM_CALL(program, SYS_prlimit64, 0, i, 0, limits->address + i * sizeof(struct rlimit));
		program_describe(program, "prlimit64");
	}
	*state = limits;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	const struct rlimit *limits = program_data(program, *(remote_t *)state);
	TaskRlimitsEntry *entry = arena_message(&dump->arena, TaskRlimitsEntry, task_rlimits_entry);
	RlimitEntry *entries = arena_alloc(&dump->arena, LIMIT_COUNT * sizeof(*entries));

	entry->n_rlimits = LIMIT_COUNT;
	entry->rlimits = arena_alloc(&dump->arena, LIMIT_COUNT * sizeof(*entry->rlimits));
	for (unsigned i = 0; i < LIMIT_COUNT; i++) {
		rlimit_entry__init(&entries[i]);
		entries[i].cur = limits[i].rlim_cur;
		entries[i].max = limits[i].rlim_max;
		entry->rlimits[i] = &entries[i];
	}
	task->core->tc->rlimits = entry;
	return 0;
}

static int check(struct restore *restore, const struct restore_task *task)
{
	const TaskRlimitsEntry *entry = task->core->tc->rlimits;

	if (task->state == TASK_STATE_DEAD || !entry)
		return 0;
	for (size_t i = 0; i < entry->n_rlimits; i++)
		if (i >= LIMIT_COUNT || entry->rlimits[i]->cur > entry->rlimits[i]->max)
			return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
				    "resource limit %zu is impossible", i);
	return 0;
}

static int enter(struct restore *restore, const struct restore_task *task)
{
	const TaskRlimitsEntry *entry = task->core->tc->rlimits;
	const TaskRlimitsEntry *born = restore->creator ? restore->creator->core->tc->rlimits : NULL;

	if (task->state == TASK_STATE_DEAD || !entry)
		return 0;
	for (size_t i = 0; i < entry->n_rlimits; i++) {
		struct rlimit now;
		/* Its creator has tried that, and a fork has its limits. */
		if (born && i < born->n_rlimits && entry->rlimits[i]->max <= born->rlimits[i]->max)
			continue;
		if (getrlimit(i, &now) < 0 || now.rlim_max >= entry->rlimits[i]->max)
			continue;
		rlim_t possible = now.rlim_max;
		now.rlim_max = entry->rlimits[i]->max;
		if (setrlimit(i, &now) < 0)
			log_warn("%s: RLIMIT_%s was %lu, criu has no CAP_SYS_RESOURCE to go beyond its own %lu",
				 restore_task_name(restore, task), limit_names[i], entry->rlimits[i]->max,
				 (unsigned long)possible);
	}
	return 0;
}

/* True if the process could raise its hard limits in enter(). */
static bool can_raise(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {};

	return !syscall(SYS_capget, &header, data) && data[0].effective & 1U << CAP_SYS_RESOURCE;
}

/* Composed in criu, whose hard limits the process had before enter(). */
static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const TaskRlimitsEntry *entry = task->core->tc->rlimits;

	for (size_t i = 0; entry && i < entry->n_rlimits; i++) {
		struct rlimit now, wanted = {entry->rlimits[i]->cur, entry->rlimits[i]->max};
		if (getrlimit(i, &now) < 0)
			continue;
		if (wanted.rlim_max > now.rlim_max && !can_raise())
			wanted.rlim_max = now.rlim_max;
		if (wanted.rlim_cur > wanted.rlim_max)
			wanted.rlim_cur = wanted.rlim_max;
		remote_t where = program_copy(program, &wanted, sizeof(wanted));
		PROGRAM_CALL(program, SYS_prlimit64, 0, i, where.address, 0);
		program_describe(program, "prlimit64");
	}
	return 0;
}

const struct task_kind rlimits_kind = {
	.name = "resource limits",
	.inspect = inspect,
	.inspected = inspected,
	.check = check,
	.enter = enter,
	.plan_last = plan_last,
};
