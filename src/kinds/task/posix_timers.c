/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers of timer_create(2).
 *
 * /proc/PID/timers tells ids, clocks and whom they notify; remaining times and overruns only the process itself can
 * ask. The C library keeps the kernel's ids, so each timer must come back under its own: newer kernels take the id
 * as it is (PR_TIMER_CREATE_RESTORE_IDS), older ones count upwards, and the numbers in between are made and deleted.
 */
#include "kinds/task/posix_timers.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/fd.h"
#include "kernel/proc.h"
#include "kernel/uapi.h"
#include "kinds/task/process_facts.h"
#include "kinds/task/task_kind.h"

enum {
	NANOSECONDS = 1000000000,
	MAX_SKIPPED_IDS = 256, /* on kernels that only count */
	THREAD_CPU_CLOCK = -2, /* the kernel's name for "CPU time of the thread that made the timer" */
	PROGRAM_BYTES_PER_TIMER = 2 * sizeof(struct blob_step) + sizeof(struct itimerspec) + 16,
};

/* ---- dump ---- */

/* One block of /proc/PID/timers; @text is at its "ID:" line and ends before the next. */
static int parse_timer(const char *text, PosixTimerEntry *entry, int *ret_clock)
{
	const char *signal = proc_field(text, "signal"), *notify = proc_field(text, "notify"),
		   *clock = proc_field(text, "ClockID");
	char how[8], whom[4];
	unsigned long value;
	int id, number, target;

	if (!signal || !notify || !clock || sscanf(text, "ID: %d", &id) != 1 ||
	    sscanf(signal, "%d/%lx", &number, &value) != 2 ||
	    sscanf(notify, "%7[a-z]/%3[a-z].%d", how, whom, &target) != 3 || sscanf(clock, "%d", ret_clock) != 1)
		return -EPROTO;
	entry->it_id = id;
	entry->clock_id = *ret_clock;
	entry->si_signo = number;
	entry->sival_ptr = value;
	entry->it_sigev_notify = !strcmp(how, "none")     ? SIGEV_NONE
				 : !strcmp(how, "thread") ? SIGEV_THREAD
							  : SIGEV_SIGNAL;
	if (!strcmp(whom, "tid")) {
		entry->it_sigev_notify |= SIGEV_THREAD_ID;
		entry->has_notify_thread_id = true;
		entry->notify_thread_id = target;
	}
	return 0;
}

static int add_timer(struct dump *dump, struct dump_task *task, const char *text, TaskTimersEntry *timers,
		     size_t capacity)
{
	PosixTimerEntry *entry = arena_message(&dump->arena, PosixTimerEntry, posix_timer_entry);
	int clock;

	if (timers->n_posix == capacity || parse_timer(text, entry, &clock) < 0)
		return fail(&dump->failure, EPROTO, "task-timers", dump_task_name(dump, task), NULL,
			    "cannot understand /proc/%d/timers", task->pid);
	if (clock == THREAD_CPU_CLOCK && task->thread_count > 1)
		return fail(
			&dump->failure, EOPNOTSUPP, "task-timer-thread-clock", dump_task_name(dump, task), NULL,
			"timer %u measures the CPU time of one of its %zu threads, and the kernel does not tell which",
			entry->it_id, task->thread_count);
	timers->posix[timers->n_posix++] = entry;
	return 0;
}

static const char *next_timer(const char *text)
{
	const char *next = strstr(text, "\nID: ");

	return next ? next + 1 : NULL;
}

static int collect(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ char *text = NULL;
	size_t count = 0;

	if (task->state == TASK_STATE_DEAD)
		return 0;
	int error = process_facts_take(task, PROCESS_TIMERS, &text, NULL);
	if (error < 0)
		return error == -ENOENT ? 0
					: fail_errno(&dump->failure, error, "task-timers", dump_task_name(dump, task),
						     NULL, "cannot read /proc/%d/timers", task->pid);
	char *first = strncmp(text, "ID: ", 4) ? NULL : text;
	for (const char *at = first; at; at = next_timer(at))
		count++;
	if (!count)
		return 0;
	TaskTimersEntry *timers = arena_message(&dump->arena, TaskTimersEntry, task_timers_entry);
	timers->posix = arena_alloc(&dump->arena, count * sizeof(*timers->posix));
	task->core->tc->timers = timers;
	/* Each block becomes a text of its own, so that a field is not taken from the next. */
	for (char *at = first; at && !error;) {
		char *next = (char *)next_timer(at);
		if (next)
			next[-1] = '\0';
		error = add_timer(dump, task, at, timers, count);
		at = next;
	}
	return error;
}

size_t posix_timers_program_bytes(const struct dump_task *task)
{
	return task->core->tc->timers ? task->core->tc->timers->n_posix * PROGRAM_BYTES_PER_TIMER : 0;
}

struct posix_timers_state {
	size_t first_step; /* of the overruns, every other one */
	remote_t times;
};

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	struct posix_timers_state *asked = arena_alloc(&dump->arena, sizeof(*asked));
	const TaskTimersEntry *timers = task->core->tc->timers;

	*state = asked;
	if (!timers || !timers->n_posix)
		return 0;
	asked->times = program_reserve(program, timers->n_posix * sizeof(struct itimerspec));
	for (size_t i = 0; i < timers->n_posix; i++) {
		size_t step = PROGRAM_CALL(program, SYS_timer_getoverrun, timers->posix[i]->it_id);
		program_describe(program, "timer_getoverrun");
		if (!i)
			asked->first_step = step;
		PROGRAM_CALL(program, SYS_timer_gettime, timers->posix[i]->it_id,
			     asked->times.address + i * sizeof(struct itimerspec));
		program_describe(program, "timer_gettime");
	}
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	const struct posix_timers_state *asked = state;
	const TaskTimersEntry *timers = task->core->tc->timers;

	if (!timers || !timers->n_posix)
		return 0;
	const struct itimerspec *times = program_data(program, asked->times);
	for (size_t i = 0; i < timers->n_posix; i++) {
		PosixTimerEntry *entry = timers->posix[i];
		entry->overrun = program_result(program, asked->first_step + 2 * i);
		entry->isec = times[i].it_interval.tv_sec;
		entry->insec = times[i].it_interval.tv_nsec;
		entry->vsec = times[i].it_value.tv_sec;
		entry->vnsec = times[i].it_value.tv_nsec;
	}
	return 0;
}

/* ---- restore ---- */

static bool has_thread(const struct restore_task *task, pid_t tid)
{
	for (size_t i = 0; i < task->entry->n_threads; i++)
		if ((pid_t)task->entry->threads[i] == tid)
			return true;
	return false;
}

static int check_timer(struct restore *restore, const struct restore_task *task, const PosixTimerEntry *entry)
{
	if (entry->insec >= NANOSECONDS || entry->vnsec >= NANOSECONDS || entry->isec > INT64_MAX ||
	    entry->vsec > INT64_MAX || entry->it_id > INT32_MAX)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "timer %u has impossible values",
			    entry->it_id);
	if (entry->has_notify_thread_id && !has_thread(task, entry->notify_thread_id))
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
			    "timer %u notifies thread %d, which is not one of its threads", entry->it_id,
			    entry->notify_thread_id);
	return 0;
}

static bool kernel_takes_ids(void)
{
	return prctl(PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0) >= 0;
}

static int compare_timers(const void *left, const void *right)
{
	const PosixTimerEntry *const *l = left, *const *r = right;

	return (*l)->it_id < (*r)->it_id ? -1 : (*l)->it_id > (*r)->it_id;
}

static int check(struct restore *restore, const struct restore_task *task)
{
	const TaskTimersEntry *timers = task->core->tc->timers;
	size_t skipped = 0;

	if (task->state == TASK_STATE_DEAD || !timers || !timers->n_posix)
		return 0;
	for (size_t i = 0; i < timers->n_posix; i++) {
		int error = check_timer(restore, task, timers->posix[i]);
		if (error < 0)
			return fail_in(&restore->failure, "%s", restore_task_name(restore, task));
	}
	qsort(timers->posix, timers->n_posix, sizeof(*timers->posix), compare_timers);
	for (size_t i = 1; i < timers->n_posix; i++)
		if (timers->posix[i]->it_id == timers->posix[i - 1]->it_id)
			return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
				    "two of its timers have the same id %u", timers->posix[i]->it_id);
	skipped = timers->posix[timers->n_posix - 1]->it_id + 1 - timers->n_posix;
	if (skipped > MAX_SKIPPED_IDS && !kernel_takes_ids())
		return fail(&restore->failure, EOPNOTSUPP, "task-timer-id", restore_task_name(restore, task),
			    "restore it on Linux 6.15 or newer", "this kernel cannot make a timer with the id %u",
			    timers->posix[timers->n_posix - 1]->it_id);
	return 0;
}

/* The kernel's struct sigevent: the C library's hides the thread id in a union. */
struct kernel_sigevent {
	uint64_t value;
	int32_t signal, notify, thread_id;
	int32_t padding[11];
};

static void plan_create(struct program *program, const PosixTimerEntry *entry, uint32_t id)
{
	const struct kernel_sigevent event = {
		.value = entry->sival_ptr,
		.signal = entry->si_signo,
		.notify = entry->it_sigev_notify,
		.thread_id = entry->has_notify_thread_id ? entry->notify_thread_id : 0,
	};
	remote_t event_at = program_copy(program, &event, sizeof(event));
	remote_t id_at = program_copy(program, &id, sizeof(id));

	PROGRAM_CALL(program, SYS_timer_create, (int32_t)entry->clock_id, event_at.address, id_at.address);
	program_describe(program, "timer_create");
}

static void plan_arm(struct program *program, const PosixTimerEntry *entry)
{
	const struct itimerspec time = {{entry->isec, entry->insec}, {entry->vsec, entry->vnsec}};
	remote_t where = program_copy(program, &time, sizeof(time));

	/* Fails with EINVAL if the counting kernel gave it another id. */
	PROGRAM_CALL(program, SYS_timer_settime, entry->it_id, 0, where.address, 0);
	program_describe(program, "timer_settime");
}

static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const TaskTimersEntry *timers = task->core->tc->timers;
	bool takes_ids = kernel_takes_ids();
	uint32_t next_id = 0;

	if (!timers || !timers->n_posix)
		return 0;
	if (takes_ids) {
		PROGRAM_CALL(program, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_ON);
		program_describe(program, "prctl(PR_TIMER_CREATE_RESTORE_IDS)");
	}
	for (size_t i = 0; i < timers->n_posix; i++) {
		const PosixTimerEntry *entry = timers->posix[i];
		for (; !takes_ids && next_id < entry->it_id; next_id++) {
			plan_create(program, entry, 0);
			PROGRAM_CALL(program, SYS_timer_delete, next_id);
			program_describe(program, "timer_delete");
		}
		plan_create(program, entry, entry->it_id);
		plan_arm(program, entry);
		next_id = entry->it_id + 1;
	}
	if (takes_ids) {
		PROGRAM_CALL(program, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_OFF);
		program_describe(program, "prctl(PR_TIMER_CREATE_RESTORE_IDS)");
	}
	return 0;
}

const struct task_kind posix_timers_kind = {
	.name = "POSIX timers",
	.collect = collect,
	.inspect = inspect,
	.inspected = inspected,
	.check = check,
	.plan_last = plan_last,
};
