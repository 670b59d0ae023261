/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the page images: where each page of each task comes from (image/page_chain.h), and where criu can put what
 * it needs itself.
 *
 * Entry: mm images are read. References are resolved by the chain, so that two tasks hold the same page if and only
 * if their places name the same page of the same source: that is what a fork can give back.
 */
#include <fcntl.h>

#include "base/fd.h"
#include "kernel/maps.h"
#include "kinds/fd/held.h"
#include "kinds/mem/mem_kind.h"
#include "restore/memory.h"
#include "restore/stores.h"
#include "restore/streamed.h"

enum { PAGE_BYTES = 4096, TASK_DEAD = 2 };

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

static int read_task(struct restore *restore, struct restore_task *task)
{
	struct restore_memory *memory = arena_alloc(&restore->arena, sizeof(*memory));
	int error = page_chain_read(restore->page_chain, IMAGE_PAGEMAP, task->pid, ADDRESS_SPACE_END, &memory->places);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", restore_task_name(restore, task),
			    "copy the whole images directory", "pagemap-%d.img is missing", task->pid);
	if (error < 0)
		return fail_in(&restore->failure, "%s", restore_task_name(restore, task));
	memory->placed = arena_alloc(&restore->arena, task->mm->n_vmas * sizeof(uint64_t));
	memory->inherited = arena_alloc(&restore->arena, task->mm->n_vmas * sizeof(bool));
	task->memory = memory;
	return 0;
}

static int check_vmas(struct restore *restore, const struct restore_task *task)
{
	uint64_t previous_end = 0;

	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		const struct mem_kind *kind = mem_kind_of_entry(vma);
		if (vma->status & VMA_STATUS_VSYSCALL)
			continue;
		if (vma->start >= vma->end || vma->start % PAGE_BYTES || vma->end % PAGE_BYTES ||
		    vma->start < previous_end || vma->end > ADDRESS_SPACE_END || vma->n_guards % 2 || (vma->prot & ~7U))
			return fail(&restore->failure, EINVAL, "image-range", restore_task_name(restore, task), NULL,
				    "mapping %lx-%lx is out of order or range", vma->start, vma->end);
		if (!kind)
			return fail(&restore->failure, EOPNOTSUPP, "image-mapping", restore_task_name(restore, task),
				    NULL, "mapping %lx-%lx is of a kind (status %x) that this release cannot restore",
				    vma->start, vma->end, vma->status);
		previous_end = vma->end;
	}
	return 0;
}

/* ---- room that nobody uses ---- */

struct range {
	uint64_t start, end;
};

static int compare_ranges(const void *left, const void *right)
{
	const struct range *a = left, *b = right;

	return a->start < b->start ? -1 : a->start > b->start;
}

static void largest_gap(struct range *ranges, size_t count, struct range *ret_gap)
{
	uint64_t covered = 0x10000;

	qsort(ranges, count, sizeof(*ranges), compare_ranges);
	*ret_gap = (struct range){};
	for (size_t i = 0; i <= count; i++) {
		uint64_t next = i < count ? ranges[i].start : ADDRESS_SPACE_END;
		if (next > covered && next - covered > ret_gap->end - ret_gap->start)
			*ret_gap = (struct range){covered, next};
		if (i < count && ranges[i].end > covered)
			covered = ranges[i].end;
	}
}

/* The middle of the largest gap: heaps and mappings of criu grow at the borders. */
static int find_stage(struct restore *restore)
{
	_cleanup_fd_ int proc_fd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_free_ struct range *ranges = NULL;
	struct mappings *own = arena_alloc(&restore->arena, sizeof(*own));
	struct range gap;
	size_t count = 0, capacity = 0;
	int error = proc_fd < 0 ? -errno : mappings_read_short(proc_fd, own);

	if (error < 0)
		return fail_errno(&restore->failure, error, "restore-maps", NULL, NULL, "cannot read /proc/self/maps");
	for (size_t i = 0; i < own->count; i++)
		if (own->items[i].end <= ADDRESS_SPACE_END) { /* not the vsyscall page */
			ARRAY_GROW(ranges, count, capacity);
			ranges[count++] = (struct range){own->items[i].start, own->items[i].end};
		}
	restore->own_mappings = own;
	for (size_t t = 0; t < restore->task_count; t++)
		for (size_t i = 0; restore->tasks[t]->mm && i < restore->tasks[t]->mm->n_vmas; i++) {
			const VmaEntry *vma = restore->tasks[t]->mm->vmas[i];
			if (vma->end > ADDRESS_SPACE_END)
				continue;
			ARRAY_GROW(ranges, count, capacity);
			ranges[count++] = (struct range){vma->start, vma->end};
		}
	largest_gap(ranges, count, &gap);
	restore->stage_address = (gap.start + (gap.end - gap.start) / 4) & ~0xfffffULL;
	restore->stage_end = gap.end - (gap.end - gap.start) / 4;
	return 0;
}

uint64_t restore_stage_address(struct restore *restore, uint64_t bytes)
{
	uint64_t address = restore->stage_address;

	bytes = (bytes + 0xfffff) & ~0xfffffULL;
	if (bytes > restore->stage_end - address)
		return 0;
	restore->stage_address += bytes;
	return address;
}

/* Tasks look into the parents when their descriptors are in place already. */
static int hold_directory(void *context, int *fd)
{
	return held_keep(context, fd);
}

int memory_read(struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++) {
		struct restore_task *task = restore->tasks[i];
		if (task->state == TASK_DEAD)
			continue;
		int error = check_vmas(restore, task);
		if (!error)
			error = read_task(restore, task);
		if (error < 0)
			return error;
	}
	stores_find_preloaded(restore);
	int error = page_chain_move_directories(restore->page_chain, hold_directory, restore);
	if (!error)
		error = streamed_move(restore);
	page_chain_close_files(restore->page_chain);
	return error ? error : find_stage(restore);
}
