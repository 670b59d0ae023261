/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory policies of single mappings (mbind(2)), which the images have no place for: found and refused. The policy of a
 * thread is another thing (thread_settings.c).
 *
 * /proc/PID/numa_maps tells, but walks all page tables. set_mempolicy_home_node(2) over the whole address space tells
 * in one call that there is none: it skips mappings without a policy and says when it has found no other. Where there
 * are some it sets their home node, which has no effect on a machine that has one node. On others each mapping is
 * asked.
 */
#include <linux/mempolicy.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kernel/proc.h"
#include "kernel/uapi.h"
#include "kinds/mem/memory.h"
#include "kinds/task/memory_policies.h"
#include "kinds/task/task_kind.h"

enum { PAGE_BYTES = 4096, FIRST_NODE = 0 };

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

struct policies_state {
	size_t first_step;    /* of one for all, or one for each mapping */
	remote_t modes;       /* an int each */
	size_t mapping_count; /* 0 = one for all */
};

static bool has_one_node(struct dump *dump)
{
	_cleanup_free_ char *text = NULL;

	if (dump->memory_nodes)
		return dump->memory_nodes == 1;
	/* Without the file the kernel knows of no nodes. */
	bool one = proc_read_text(AT_FDCWD, "/sys/devices/system/node/online", &text, NULL) < 0 || !strcmp(text, "0\n");
	dump->memory_nodes = one ? 1 : 2;
	return one;
}

size_t memory_policies_program_bytes(struct dump *dump, const struct dump_task *task)
{
	return has_one_node(dump) ? 0 : task->memory->mappings.count * (sizeof(struct blob_step) + sizeof(int));
}

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	struct policies_state *asked = arena_alloc(&dump->arena, sizeof(*asked));
	const struct mappings *mappings = &task->memory->mappings;

	*state = asked;
	if (has_one_node(dump)) {
		asked->first_step =
			PROGRAM_TRY(program, SYS_set_mempolicy_home_node, 0, ADDRESS_SPACE_END, FIRST_NODE, 0);
		return 0;
	}
	asked->mapping_count = mappings->count;
	asked->modes = program_reserve(program, mappings->count * sizeof(int));
	for (size_t i = 0; i < mappings->count; i++) {
		size_t step = PROGRAM_TRY(program, SYS_get_mempolicy, asked->modes.address + i * sizeof(int), 0, 0,
					  mappings->items[i].start, MPOL_F_ADDR);
		if (i == 0)
			asked->first_step = step;
	}
	return 0;
}

/* In the one call, also what it does not say: then the kernel is older than 5.17 or has no NUMA. */
static bool has_policy(const struct policies_state *asked, const struct program *program)
{
	if (!asked->mapping_count) {
		int64_t result = program_result(program, asked->first_step);
		return result == 0 || result == -EOPNOTSUPP;
	}
	const int *modes = program_data(program, asked->modes);
	for (size_t i = 0; i < asked->mapping_count; i++)
		if (!program_result(program, asked->first_step + i) && modes[i] != MPOL_DEFAULT)
			return true;
	return false;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	if (!has_policy(state, program))
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "task-mapping-policy", dump_task_name(dump, task),
		    "start it with a policy for all of its memory instead: numactl",
		    "a part of its memory has a NUMA policy of its own (mbind)");
}

const struct task_kind memory_policies_kind = {
	.name = "memory policies",
	.inspect = inspect,
	.inspected = inspected,
};
