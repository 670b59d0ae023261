/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a thread has asked for itself with one call each, and gets back with another: whether it may read the time stamp
 * counter (PR_SET_TSC), whether it wants to hear early of broken memory (PR_MCE_KILL), and on which nodes its memory
 * shall lie (set_mempolicy). The images only say what is not the default. What criu itself was started with must not
 * reach the tree: the root takes it off before it forks.
 */
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/task/task_kind.h"

enum {
	NODE_MASK_BYTES = 128, /* 1024 nodes, the most that kernels are built for */
	NODE_MASK_BITS = NODE_MASK_BYTES * 8,
};

struct thread_state {
	size_t machine_check_step, policy_step;
	remote_t tsc, policy, nodes;
};

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	struct thread_state *asked = arena_alloc(&dump->arena, sizeof(*asked));

	*state = asked;
	asked->tsc = program_reserve(program, sizeof(int));
	asked->policy = program_reserve(program, sizeof(int));
	asked->nodes = program_reserve(program, NODE_MASK_BYTES);
	PROGRAM_TRY(program, SYS_prctl, PR_GET_TSC, asked->tsc.address);
	asked->machine_check_step = PROGRAM_TRY(program, SYS_prctl, PR_MCE_KILL_GET);
	/* Kernels without NUMA have no such call. */
	asked->policy_step = PROGRAM_TRY(program, SYS_get_mempolicy, asked->policy.address, asked->nodes.address,
					 NODE_MASK_BITS, 0, 0);
	return 0;
}

static void keep_memory_policy(struct dump *dump, ThreadCoreEntry *core, const int *policy, const uint8_t *nodes)
{
	size_t bytes = NODE_MASK_BYTES;

	if (*policy == MPOL_DEFAULT)
		return;
	while (bytes && !nodes[bytes - 1])
		bytes--;
	core->has_memory_policy = true;
	core->memory_policy = (uint32_t)*policy;
	core->has_memory_policy_nodes = true;
	core->memory_policy_nodes.len = bytes;
	core->memory_policy_nodes.data = arena_memdup(&dump->arena, nodes, bytes);
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	const struct thread_state *asked = state;
	ThreadCoreEntry *core = thread->core->thread_core;
	int64_t machine_check = program_result(program, asked->machine_check_step);
	const int *tsc = program_data(program, asked->tsc);

	if (*tsc == PR_TSC_SIGSEGV) {
		core->has_tsc_mode = true;
		core->tsc_mode = (uint32_t)*tsc;
	}
	if (machine_check >= 0 && machine_check != PR_MCE_KILL_DEFAULT) {
		core->has_machine_check_policy = true;
		core->machine_check_policy = (uint32_t)machine_check;
	}
	if (program_result(program, asked->policy_step) == 0)
		keep_memory_policy(dump, core, program_data(program, asked->policy),
				   program_data(program, asked->nodes));
	return 0;
}

/* ---- restore ---- */

static int check(struct restore *restore, const struct restore_task *task)
{
	for (size_t i = 0; task->state != TASK_STATE_DEAD && i < task->thread_count; i++) {
		const ThreadCoreEntry *core = task->thread_cores[i]->thread_core;
		if (core->has_memory_policy_nodes && core->memory_policy_nodes.len > NODE_MASK_BYTES)
			return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
				    "a mask of memory nodes has %zu bytes", core->memory_policy_nodes.len);
	}
	return 0;
}

static int enter(struct restore *restore, const struct restore_task *task)
{
	if (restore->creator)
		return 0;
	prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0);
	syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0);
	return 0;
}

/* A policy whose nodes this machine does not have is dropped, like a binding to processors. */
static void plan_memory_policy(struct restore *restore, const struct restore_task *task, const ThreadCoreEntry *core,
			       struct program *program)
{
	uint8_t nodes[NODE_MASK_BYTES] = {};

	/* Of no bytes, as long as the policy is for all nodes. */
	if (core->memory_policy_nodes.len)
		memcpy(nodes, core->memory_policy_nodes.data, core->memory_policy_nodes.len);
	if (syscall(SYS_set_mempolicy, core->memory_policy, nodes, NODE_MASK_BITS) < 0) {
		log_warn("%s: its memory policy %#x (set_mempolicy) cannot be had here and is dropped: %s",
			 restore_task_name(restore, task), core->memory_policy, strerror(errno));
		return;
	}
	syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0);
	remote_t where = program_copy(program, nodes, sizeof(nodes));
	PROGRAM_CALL(program, SYS_set_mempolicy, core->memory_policy, where.address, NODE_MASK_BITS);
	program_describe(program, "set_mempolicy");
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	const ThreadCoreEntry *core = thread->thread_core;

	if (core->has_tsc_mode) {
		PROGRAM_CALL(program, SYS_prctl, PR_SET_TSC, core->tsc_mode);
		program_describe(program, "prctl(PR_SET_TSC)");
	}
	if (core->has_machine_check_policy) {
		PROGRAM_CALL(program, SYS_prctl, PR_MCE_KILL, PR_MCE_KILL_SET, core->machine_check_policy);
		program_describe(program, "prctl(PR_MCE_KILL)");
	}
	if (core->has_memory_policy)
		plan_memory_policy(restore, task, core, program);
	return 0;
}

const struct task_kind thread_settings_kind = {
	.name = "thread settings",
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.check = check,
	.enter = enter,
	.plan_thread = plan_thread,
};
