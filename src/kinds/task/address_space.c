/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process has asked of its memory as a whole, and of memory to come. The process alone can tell.
 *
 * - PR_SET_MDWE: nothing that is writable becomes executable. It cannot be taken back, so it comes last.
 * - PR_SET_MEMORY_MERGE: all private memory may be merged (KSM). Setting it marks every mapping, also those that the
 *   process has taken out (MADV_UNMERGEABLE): they are taken out again.
 * - mlockall(MCL_FUTURE): nothing tells. But criu's own mapping has come since, and msync() knows a locked one.
 * - PR_FUTEX_HASH: how many slots the process's own table of futexes has. The kernel makes one of 4 for each thread
 *   that can run, at least 16, with the second thread, and lets it grow; only what it cannot have chosen is kept. That
 * a process of one thread wants the global table cannot be seen.
 * - modify_ldt(): no 64-bit program needs segments of its own. Refused.
 */
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/maps.h"
#include "kernel/uapi.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/task/task_kind.h"

enum {
	PAGE_BYTES = 4096,
	LDT_READ = 0,
	LDT_ENTRY_BYTES = 8,
	FEWEST_OWN_SLOTS = 16,
	SLOTS_PER_THREAD = 4,
};

struct space_state {
	size_t mdwe_step, merge_step, lock_step, futex_step, ldt_step;
	uint64_t page; /* of criu's mapping */
};

static int inspect(struct dump *dump, struct dump_task *task, struct program *program, void **state)
{
	struct space_state *asked = arena_alloc(&dump->arena, sizeof(*asked));
	remote_t entry = program_reserve(program, LDT_ENTRY_BYTES);

	*state = asked;
	asked->page = entry.address & ~(uint64_t)(PAGE_BYTES - 1);
	asked->mdwe_step = PROGRAM_TRY(program, SYS_prctl, PR_GET_MDWE);
	asked->merge_step = PROGRAM_TRY(program, SYS_prctl, PR_GET_MEMORY_MERGE);
	asked->futex_step = PROGRAM_TRY(program, SYS_prctl, PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS);
	asked->lock_step = PROGRAM_TRY(program, SYS_msync, asked->page, PAGE_BYTES, MS_INVALIDATE);
	asked->ldt_step = PROGRAM_TRY(program, SYS_modify_ldt, LDT_READ, entry.address, LDT_ENTRY_BYTES);
	return 0;
}

/* Locked at once or on the first touch: only the flags of the mapping say. Rare enough for reading all of them. */
static int keep_lock(struct dump *dump, struct dump_task *task, uint64_t page)
{
	struct mappings mappings;
	int error = mappings_read(task->proc_dirfd, &mappings);
	uint32_t flags = 0;

	if (error < 0)
		return fail_errno(&dump->failure, error, "task-maps", dump_task_name(dump, task), NULL,
				  "cannot read how new mappings are locked");
	for (size_t i = 0; i < mappings.count; i++)
		if (mappings.items[i].start <= page && page < mappings.items[i].end)
			flags = mappings.items[i].flags;
	mappings_free(&mappings);
	task->mm->has_lock_to_come = true;
	task->mm->lock_to_come = MCL_FUTURE | (flags & MAPPING_LOCK_ON_FAULT ? MCL_ONFAULT : 0);
	return 0;
}

static uint64_t most_slots_by_default(void)
{
	uint64_t threads = sysconf(_SC_NPROCESSORS_ONLN), slots = FEWEST_OWN_SLOTS;

	while (slots < SLOTS_PER_THREAD * threads)
		slots *= 2;
	return slots;
}

static void keep_futex_slots(struct dump_task *task, int64_t slots)
{
	bool chosen =
		slots ? slots < FEWEST_OWN_SLOTS || slots > (int64_t)most_slots_by_default() : task->thread_count > 1;

	if (slots < 0 || !chosen) /* -EINVAL: the kernel has no such tables */
		return;
	task->mm->has_futex_slots = true;
	task->mm->futex_slots = slots;
}

static int inspected(struct dump *dump, struct dump_task *task, const struct program *program, void *state)
{
	const struct space_state *asked = state;
	int64_t mdwe = program_result(program, asked->mdwe_step);

	if (program_result(program, asked->ldt_step) > 0)
		return fail(&dump->failure, EOPNOTSUPP, "task-ldt", dump_task_name(dump, task),
			    "only programs that run 16-bit or old 32-bit code make them; run it without",
			    "it has segments of its own (modify_ldt)");
	if (mdwe > 0) {
		task->mm->has_mdwe = true;
		task->mm->mdwe = mdwe;
	}
	if (program_result(program, asked->merge_step) > 0)
		task->mm->has_memory_merge = task->mm->memory_merge = true;
	keep_futex_slots(task, program_result(program, asked->futex_step));
	return program_result(program, asked->lock_step) == -EBUSY ? keep_lock(dump, task, asked->page) : 0;
}

/* ---- restore ---- */

/* Forks inherit it, and a criu that has it (MemoryKSM= of systemd) must not pass it on. */
static int enter(struct restore *restore, const struct restore_task *task)
{
	if (!restore->creator && prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) > 0)
		prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
	return 0;
}

static void plan_merging(const MmEntry *mm, struct program *program)
{
	PROGRAM_CALL(program, SYS_prctl, PR_SET_MEMORY_MERGE, 1);
	program_describe(program, "prctl(PR_SET_MEMORY_MERGE)");
	for (size_t i = 0; i < mm->n_vmas; i++) {
		const VmaEntry *vma = mm->vmas[i];
		if (!(vma->madv >> MADV_MERGEABLE & 1) && !(vma->flags & MAP_SHARED) &&
		    !(vma->status & VMA_STATUS_VSYSCALL))
			PROGRAM_TRY(program, SYS_madvise, vma->start, vma->end - vma->start, MADV_UNMERGEABLE);
	}
}

static int plan(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const MmEntry *mm = task->mm;

	if (mm->has_memory_merge && mm->memory_merge)
		plan_merging(mm, program);
	if (mm->has_lock_to_come) {
		PROGRAM_CALL(program, SYS_mlockall, MCL_FUTURE | (mm->lock_to_come & MCL_ONFAULT));
		program_describe(program, "mlockall(MCL_FUTURE)");
	}
	if (mm->has_futex_slots) {
		PROGRAM_CALL(program, SYS_prctl, PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, mm->futex_slots);
		program_describe(program, "prctl(PR_FUTEX_HASH)");
	}
	if (mm->has_mdwe) {
		PROGRAM_CALL(program, SYS_prctl, PR_SET_MDWE, mm->mdwe);
		program_describe(program, "prctl(PR_SET_MDWE)");
	}
	return 0;
}

const struct task_kind address_space_kind = {
	.name = "address space",
	.inspect = inspect,
	.inspected = inspected,
	.enter = enter,
	.plan = plan,
};
