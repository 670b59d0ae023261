/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setitimer(2): real, virtual and profiling time. They run again from the last program on.
 *
 * A periodic real-time timer stands still from its signal being sent to it being taken; the kernel then shows no
 * remaining time, and sets it off again when the signal is taken. There is no way to ask for that state: such a
 * timer runs from the restore on.
 */
#include <sys/syscall.h>
#include <sys/time.h>

#include "base/fd.h"
#include "kinds/task/task_kind.h"

enum { MICROSECONDS = 1000000 };

static const int timers[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	remote_t *values = arena_alloc(&dump->arena, sizeof(*values));

	*values = program_reserve(program, ARRAY_SIZE(timers) * sizeof(struct itimerval));
	for (size_t i = 0; i < ARRAY_SIZE(timers); i++) {
		PROGRAM_CALL(program, SYS_getitimer, timers[i], values->address + i * sizeof(struct itimerval));
		program_describe(program, "getitimer");
	}
	*state = values;
	return 0;
}

static ItimerEntry *to_entry(struct dump *dump, const struct itimerval *value)
{
	ItimerEntry *entry = arena_message(&dump->arena, ItimerEntry, itimer_entry);

	entry->isec = value->it_interval.tv_sec;
	entry->iusec = value->it_interval.tv_usec;
	entry->vsec = value->it_value.tv_sec;
	entry->vusec = value->it_value.tv_usec;
	return entry;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	const struct itimerval *values = program_data(program, *(remote_t *)state);
	TaskCoreEntry *core = task->core->tc;

	/* posix_timers.c may have made the message. */
	if (!core->timers)
		core->timers = arena_message(&dump->arena, TaskTimersEntry, task_timers_entry);
	core->timers->real = to_entry(dump, &values[0]);
	core->timers->virt = to_entry(dump, &values[1]);
	core->timers->prof = to_entry(dump, &values[2]);
	return 0;
}

static int check_timer(struct restore *restore, const struct restore_task *task, const ItimerEntry *entry)
{
	if (entry->iusec < MICROSECONDS && entry->vusec < MICROSECONDS && entry->isec <= INT64_MAX &&
	    entry->vsec <= INT64_MAX)
		return 0;
	return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
		    "an interval timer has an impossible time");
}

static int check(struct restore *restore, const struct restore_task *task)
{
	const TaskTimersEntry *entry = task->core->tc->timers;
	int error = 0;

	if (task->state == TASK_STATE_DEAD || !entry)
		return 0;
	error = check_timer(restore, task, entry->real);
	if (!error)
		error = check_timer(restore, task, entry->virt);
	return error ? error : check_timer(restore, task, entry->prof);
}

static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const TaskTimersEntry *entry = task->core->tc->timers;

	if (!entry)
		return 0;
	const ItimerEntry *entries[] = {entry->real, entry->virt, entry->prof};
	for (size_t i = 0; i < ARRAY_SIZE(timers); i++) {
		struct itimerval value = {{entries[i]->isec, entries[i]->iusec}, {entries[i]->vsec, entries[i]->vusec}};
		if (!timerisset(&value.it_value) && !timerisset(&value.it_interval))
			continue;
		if (timers[i] == ITIMER_REAL && !timerisset(&value.it_value))
			value.it_value = value.it_interval;
		remote_t where = program_copy(program, &value, sizeof(value));
		PROGRAM_CALL(program, SYS_setitimer, timers[i], where.address, 0);
		program_describe(program, "setitimer");
	}
	return 0;
}

const struct task_kind itimers_kind = {
	.name = "interval timers",
	.inspect = inspect,
	.inspected = inspected,
	.check = check,
	.plan_last = plan_last,
};
