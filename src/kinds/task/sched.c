/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a thread is scheduled: nice value, policy and priority or deadlines, slice, processors, disk priority, timer
 * slack.
 *
 * Images of CRIU hold the first three. The others are extensions; processors are only kept when the thread was
 * bound to less than all, so that a task that was free is free on a larger machine too.
 *
 * The slice is one that the thread has asked for if it is not that of criu, which did not. The timer slack that a
 * thread goes back to is what its creator had when it was made: it is seen by going back to it for a moment, and comes
 * again from whoever makes the thread. Realtime threads have none and do not tell.
 */
#include "kinds/task/sched.h"

#include <linux/ioprio.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/task/task_kind.h"

enum {
	CPU_MASK_BYTES = 1024, /* 8192 processors, the most that x86-64 kernels are built for */
	NICE_OFFSET = 20,      /* the system call returns 20 - nice */
	THREAD_SELF = 0,
	BY_DEFAULT = 0,
	USUAL_TIMER_SLACK_NS = 50000, /* that of the first process of every system */
};

struct sched_state {
	size_t nice_step, io_step, slack_step, default_slack_step, affinity_step;
	remote_t attributes, affinity;
};

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	struct sched_state *asked = arena_alloc(&dump->arena, sizeof(*asked));

	*state = asked;
	asked->attributes = program_reserve(program, sizeof(struct sched_attr));
	asked->affinity = program_reserve(program, CPU_MASK_BYTES);
	asked->nice_step = PROGRAM_CALL(program, SYS_getpriority, PRIO_PROCESS, THREAD_SELF);
	program_describe(program, "getpriority");
	PROGRAM_CALL(program, SYS_sched_getattr, THREAD_SELF, asked->attributes.address, sizeof(struct sched_attr), 0);
	program_describe(program, "sched_getattr");
	asked->affinity_step =
		PROGRAM_CALL(program, SYS_sched_getaffinity, THREAD_SELF, CPU_MASK_BYTES, asked->affinity.address);
	program_describe(program, "sched_getaffinity");
	asked->io_step = PROGRAM_TRY(program, SYS_ioprio_get, IOPRIO_WHO_PROCESS, THREAD_SELF);
	asked->slack_step = PROGRAM_CALL(program, SYS_prctl, PR_GET_TIMERSLACK);
	program_describe(program, "prctl(PR_GET_TIMERSLACK)");
	PROGRAM_TRY(program, SYS_prctl, PR_SET_TIMERSLACK, BY_DEFAULT);
	asked->default_slack_step = PROGRAM_TRY(program, SYS_prctl, PR_GET_TIMERSLACK);
	PROGRAM_CALL_FLAGS(program, BLOB_STEP_MAY_FAIL | BLOB_STEP_RESULT_OF << 1, SYS_prctl, PR_SET_TIMERSLACK,
			   asked->slack_step);
	return 0;
}

static unsigned count_processors(const uint8_t *mask, size_t bytes)
{
	unsigned count = 0;

	for (size_t i = 0; i < bytes; i++)
		count += __builtin_popcount(mask[i]);
	return count;
}

static void keep_affinity(struct dump *dump, ThreadCoreEntry *core, const uint8_t *mask, size_t bytes)
{
	if (!dump->online_processors)
		dump->online_processors = sysconf(_SC_NPROCESSORS_ONLN);
	if (count_processors(mask, bytes) >= dump->online_processors)
		return;
	while (bytes && !mask[bytes - 1])
		bytes--;
	core->has_cpu_mask = true;
	core->cpu_mask.len = bytes;
	core->cpu_mask.data = arena_memdup(&dump->arena, mask, bytes);
}

static bool is_fair(uint32_t policy)
{
	return policy == SCHED_NORMAL || policy == SCHED_BATCH || policy == SCHED_IDLE;
}

/* Kernels before 6.12 have no slices, and tell none. */
static bool has_asked_for_slice(struct dump *dump, const struct sched_attr *attributes)
{
	struct sched_attr own = {};

	if (!attributes->sched_runtime)
		return false;
	if (!dump->default_slice_ns && !syscall(SYS_sched_getattr, THREAD_SELF, &own, sizeof(own), 0) &&
	    is_fair(own.sched_policy))
		dump->default_slice_ns = own.sched_runtime;
	return dump->default_slice_ns && attributes->sched_runtime != dump->default_slice_ns;
}

static void keep_policy(struct dump *dump, ThreadCoreEntry *core, const struct sched_attr *attributes)
{
	core->has_sched_policy = true;
	core->sched_policy = attributes->sched_policy;
	if (attributes->sched_flags & SCHED_FLAG_RESET_ON_FORK)
		core->sched_policy |= SCHED_RESET_ON_FORK;
	if (attributes->sched_priority) {
		core->has_sched_prio = true;
		core->sched_prio = attributes->sched_priority;
	}
	if (is_fair(attributes->sched_policy) && has_asked_for_slice(dump, attributes)) {
		core->has_sched_runtime_ns = true;
		core->sched_runtime_ns = attributes->sched_runtime;
	}
	if (attributes->sched_policy != SCHED_DEADLINE)
		return;
	core->has_sched_flags = core->has_sched_runtime_ns = core->has_sched_deadline_ns = core->has_sched_period_ns =
		true;
	core->sched_flags = attributes->sched_flags;
	core->sched_runtime_ns = attributes->sched_runtime;
	core->sched_deadline_ns = attributes->sched_deadline;
	core->sched_period_ns = attributes->sched_period;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	const struct sched_state *asked = state;
	ThreadCoreEntry *core = thread->core->thread_core;
	int64_t io_priority = program_result(program, asked->io_step);
	int64_t mask_bytes = program_result(program, asked->affinity_step);

	core->has_sched_nice = true;
	core->sched_nice = NICE_OFFSET - program_result(program, asked->nice_step);
	keep_policy(dump, core, program_data(program, asked->attributes));
	if (mask_bytes > 0 && mask_bytes <= CPU_MASK_BYTES)
		keep_affinity(dump, core, program_data(program, asked->affinity), mask_bytes);
	if (io_priority > 0) {
		core->has_io_priority = true;
		core->io_priority = io_priority;
	}
	core->has_timer_slack_ns = true;
	core->timer_slack_ns = program_result(program, asked->slack_step);
	int64_t default_slack_ns = program_result(program, asked->default_slack_step);
	if (default_slack_ns > 0 && default_slack_ns != USUAL_TIMER_SLACK_NS) {
		core->has_default_timer_slack_ns = true;
		core->default_timer_slack_ns = default_slack_ns;
	}
	return 0;
}

/* ---- restore ---- */

static int check(struct restore *restore, const struct restore_task *task)
{
	for (size_t i = 0; task->state != TASK_STATE_DEAD && i < task->thread_count; i++) {
		const ThreadCoreEntry *core = task->thread_cores[i]->thread_core;
		if (core->has_cpu_mask && core->cpu_mask.len > CPU_MASK_BYTES)
			return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
				    "a processor mask has %zu bytes", core->cpu_mask.len);
	}
	return 0;
}

uint64_t sched_default_timer_slack_ns(const CoreEntry *core)
{
	const ThreadCoreEntry *thread = core->thread_core;

	return thread && thread->has_default_timer_slack_ns ? thread->default_timer_slack_ns : USUAL_TIMER_SLACK_NS;
}

void sched_prepare_fork(const CoreEntry *core)
{
	uint64_t slack_ns = sched_default_timer_slack_ns(core);

	if ((uint64_t)prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) != slack_ns)
		prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0);
}

static void plan_attributes(struct program *program, const struct sched_attr *attributes)
{
	remote_t where = program_copy(program, attributes, sizeof(*attributes));

	PROGRAM_CALL(program, SYS_sched_setattr, THREAD_SELF, where.address, 0);
	program_describe(program, "sched_setattr");
}

static void plan_policy(struct program *program, const ThreadCoreEntry *core)
{
	struct sched_attr attributes = {
		.size = sizeof(attributes),
		.sched_policy = core->sched_policy & ~SCHED_RESET_ON_FORK,
		.sched_flags = core->sched_policy & SCHED_RESET_ON_FORK ? SCHED_FLAG_RESET_ON_FORK : 0,
		.sched_nice = core->sched_nice,
		.sched_priority = core->has_sched_prio ? core->sched_prio : 0,
	};

	if (attributes.sched_policy == SCHED_DEADLINE) {
		attributes.sched_flags |= core->sched_flags & (SCHED_FLAG_RECLAIM | SCHED_FLAG_DL_OVERRUN);
		attributes.sched_runtime = core->sched_runtime_ns;
		attributes.sched_deadline = core->sched_deadline_ns;
		attributes.sched_period = core->sched_period_ns;
	} else if (is_fair(attributes.sched_policy) && core->has_sched_runtime_ns) {
		attributes.sched_runtime = core->sched_runtime_ns;
	}
	/* An idle thread can keep a slice but not get one. */
	if (attributes.sched_policy == SCHED_IDLE && attributes.sched_runtime) {
		attributes.sched_policy = SCHED_NORMAL;
		plan_attributes(program, &attributes);
		attributes.sched_policy = SCHED_IDLE;
	}
	plan_attributes(program, &attributes);
}

/*
 * A mask whose processors this machine does not have is dropped. Images with our extensions and without a mask mean
 * all processors; the process may have inherited less from criu.
 */
static void plan_affinity(struct restore *restore, const struct restore_task *task, struct program *program,
			  const ThreadCoreEntry *core)
{
	uint8_t own[CPU_MASK_BYTES] = {}, wanted[CPU_MASK_BYTES];
	long bytes = syscall(SYS_sched_getaffinity, 0, sizeof(own), own);
	bool possible = false;

	if (bytes <= 0 || (!core->has_cpu_mask && !core->has_timer_slack_ns))
		return;
	memset(wanted, 0xff, sizeof(wanted));
	if (core->has_cpu_mask) {
		memset(wanted, 0, sizeof(wanted));
		memcpy(wanted, core->cpu_mask.data, core->cpu_mask.len);
		for (long i = 0; i < bytes && !possible; i++)
			possible = wanted[i] & own[i];
		if (!possible)
			log_warn("%s: it was bound to processors that criu cannot use here; the binding is dropped",
				 restore_task_name(restore, task));
	} else {
		possible = count_processors(own, bytes) < sysconf(_SC_NPROCESSORS_ONLN);
	}
	if (!possible)
		return;
	remote_t where = program_copy(program, wanted, bytes);
	PROGRAM_CALL(program, SYS_sched_setaffinity, THREAD_SELF, bytes, where.address);
	program_describe(program, "sched_setaffinity");
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	const ThreadCoreEntry *core = thread->thread_core;

	if (core->has_sched_nice) {
		PROGRAM_CALL(program, SYS_setpriority, PRIO_PROCESS, THREAD_SELF, core->sched_nice);
		program_describe(program, "setpriority");
	}
	plan_affinity(restore, task, program, core);
	if (core->has_timer_slack_ns && core->timer_slack_ns) {
		PROGRAM_CALL(program, SYS_prctl, PR_SET_TIMERSLACK, core->timer_slack_ns);
		program_describe(program, "prctl(PR_SET_TIMERSLACK)");
	}
	if (core->has_io_priority || syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) > 0) {
		PROGRAM_CALL(program, SYS_ioprio_set, IOPRIO_WHO_PROCESS, THREAD_SELF,
			     core->has_io_priority ? core->io_priority : 0);
		program_describe(program, "ioprio_set");
	}
	if (core->has_sched_policy)
		plan_policy(program, core);
	return 0;
}

const struct task_kind sched_kind = {
	.name = "scheduling",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.check = check,
	.plan_thread = plan_thread,
};
