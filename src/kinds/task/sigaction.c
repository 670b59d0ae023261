/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process does with each signal. The images list 62 actions, signals 1 to 64 without SIGKILL and SIGSTOP.
 *
 * They are set in the very last program: an ignored SIGCHLD would make dead children vanish while the tree is built.
 * But setting "ignore" throws away what is pending, and threads queue their own signals before. So actions that may
 * do that to a thread's signal are set early, when the process is still criu.
 */
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kinds/task/task_kind.h"

enum { SIGNAL_COUNT = 64, ACTION_COUNT = SIGNAL_COUNT - 2, SIGNAL_SET_BYTES = 8 };

/* The kernel's struct, which is not the C library's. */
struct kernel_action {
	uint64_t handler, flags, restorer, mask;
};

static int next_signal(int signal)
{
	do
		signal++;
	while (signal == SIGKILL || signal == SIGSTOP);
	return signal;
}

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	remote_t *actions = arena_alloc(&dump->arena, sizeof(*actions));
	size_t i = 0;

	*actions = program_reserve(program, ACTION_COUNT * sizeof(struct kernel_action));
	for (int signal = 1; signal <= SIGNAL_COUNT; signal = next_signal(signal), i++) {
		PROGRAM_CALL(program, SYS_rt_sigaction, signal, 0, actions->address + i * sizeof(struct kernel_action),
			     SIGNAL_SET_BYTES);
		program_describe(program, "rt_sigaction");
	}
	*state = actions;
	return 0;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	const struct kernel_action *actions = program_data(program, *(remote_t *)state);
	TaskCoreEntry *core = task->core->tc;
	SaEntry *entries = arena_alloc(&dump->arena, ACTION_COUNT * sizeof(*entries));

	core->n_sigactions = ACTION_COUNT;
	core->sigactions = arena_alloc(&dump->arena, ACTION_COUNT * sizeof(*core->sigactions));
	for (size_t i = 0; i < ACTION_COUNT; i++) {
		SaEntry *entry = core->sigactions[i] = &entries[i];
		sa_entry__init(entry);
		entry->sigaction = actions[i].handler;
		entry->flags = actions[i].flags;
		entry->restorer = actions[i].restorer;
		entry->mask = actions[i].mask;
		entry->has_compat_sigaction = true;
	}
	return 0;
}

static int check(struct restore *restore, const struct restore_task *task)
{
	if (task->state == TASK_STATE_DEAD || !task->core->tc->n_sigactions ||
	    task->core->tc->n_sigactions == ACTION_COUNT)
		return 0;
	return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
		    "it has %zu signal actions instead of %d", task->core->tc->n_sigactions, ACTION_COUNT);
}

/* The signals that threads other than the leader have in queues of their own. Bit 0 is signal 1. */
static uint64_t pending_in_threads(const struct restore_task *task)
{
	uint64_t set = 0;

	for (size_t i = 1; i < task->thread_count; i++) {
		const SignalQueueEntry *queue = task->thread_cores[i]->thread_core->signals_p;
		for (size_t n = 0; queue && n < queue->n_signals; n++) {
			siginfo_t info;
			memcpy(&info, queue->signals[n]->siginfo.data, sizeof(info));
			if (info.si_signo >= 1 && info.si_signo <= SIGNAL_COUNT)
				set |= 1ULL << (info.si_signo - 1);
		}
	}
	return set;
}

static bool is_set_early(const SaEntry *entry, int signal, uint64_t pending)
{
	return signal != SIGCHLD && (pending >> (signal - 1) & 1) &&
	       (entry->sigaction == (uintptr_t)SIG_DFL || entry->sigaction == (uintptr_t)SIG_IGN);
}

static struct kernel_action to_action(const SaEntry *entry)
{
	return (struct kernel_action){entry->sigaction, entry->flags, entry->restorer, entry->mask};
}

static int enter(struct restore *restore, const struct restore_task *task)
{
	const TaskCoreEntry *core = task->core->tc;
	uint64_t pending = pending_in_threads(task);
	int signal = 1;

	for (size_t i = 0; i < core->n_sigactions; i++, signal = next_signal(signal)) {
		struct kernel_action action = to_action(core->sigactions[i]);
		if (is_set_early(core->sigactions[i], signal, pending) &&
		    syscall(SYS_rt_sigaction, signal, &action, NULL, SIGNAL_SET_BYTES) < 0)
			return fail_errno(&restore->failure, errno, "task-sigaction", restore_task_name(restore, task),
					  NULL, "cannot set the action of signal %d", signal);
	}
	return 0;
}

static int plan_last(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const TaskCoreEntry *core = task->core->tc;
	uint64_t pending = pending_in_threads(task);
	int signal = 1;

	for (size_t i = 0; i < core->n_sigactions; i++, signal = next_signal(signal)) {
		const SaEntry *entry = core->sigactions[i];
		struct kernel_action action = to_action(entry);
		if (is_set_early(entry, signal, pending))
			continue;
		remote_t where = program_copy(program, &action, sizeof(action));
		PROGRAM_CALL(program, SYS_rt_sigaction, signal, where.address, 0, SIGNAL_SET_BYTES);
		program_describe(program, "rt_sigaction");
	}
	return 0;
}

const struct task_kind sigaction_kind = {
	.name = "signal actions",
	.inspect = inspect,
	.inspected = inspected,
	.check = check,
	.enter = enter,
	.plan_last = plan_last,
};
