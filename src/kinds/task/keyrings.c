/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys that a thread or a process keeps for itself (keyrings(7)). They have no names under which they could be found
 * again, and the kernel gives out the content of some kinds of keys only to itself: refused. Asking for one that is not
 * there does not make it.
 */
#include <linux/keyctl.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kinds/task/task_kind.h"

static const struct {
	int keyring;
	const char *name;
} own_keyrings[] = {
	{KEY_SPEC_THREAD_KEYRING, "thread keyring"},
	/* It belongs to the thread that has made it, and those that it made later. */
	{KEY_SPEC_PROCESS_KEYRING, "process keyring"},
};

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	size_t *steps = arena_alloc(&dump->arena, ARRAY_SIZE(own_keyrings) * sizeof(*steps));

	for (size_t i = 0; i < ARRAY_SIZE(own_keyrings); i++)
		steps[i] = PROGRAM_TRY(program, SYS_keyctl, KEYCTL_GET_KEYRING_ID, own_keyrings[i].keyring, 0);
	*state = steps;
	return 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	const size_t *steps = state;

	for (size_t i = 0; i < ARRAY_SIZE(own_keyrings); i++)
		if (program_result(program, steps[i]) >= 0)
			return fail(&dump->failure, EOPNOTSUPP, "task-keyring", dump_task_name(dump, thread->task),
				    "it must keep its keys in a session or user keyring", "thread %d has a %s (keyctl)",
				    thread->tid, own_keyrings[i].name);
	return 0;
}

const struct task_kind keyrings_kind = {
	.name = "keyrings",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
};
