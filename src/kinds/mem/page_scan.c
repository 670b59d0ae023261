/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of a task are dumped.
 *
 * One PAGEMAP_SCAN walks a whole address space and gives the ranges of pages that are private to the mm (present or
 * swapped, not of a file, not the zero page); holes cost nothing.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "kernel/uapi.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/page_runs.h"

enum {
	PAGE_BYTES = 4096,
	SCAN_REGIONS = 4096,
	STRETCH_BYTES = 4 << 20, /* worth a question of its own */
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

void page_runs_add(struct memory_map *memory, const struct page_run *run)
{
	struct page_run *last = memory->run_count ? &memory->runs[memory->run_count - 1] : NULL;

	if (last && last->address + last->pages * PAGE_BYTES == run->address && last->huge == run->huge &&
	    last->lazy == run->lazy && last->unreadable == run->unreadable && last->shared == run->shared &&
	    last->source == run->source &&
	    (!run->source || last->source_address + last->pages * PAGE_BYTES == run->source_address)) {
		last->pages += run->pages;
		return;
	}
	ARRAY_GROW(memory->runs, memory->run_count, memory->run_capacity);
	memory->runs[memory->run_count++] = *run;
}

static void add_guard(struct dump *dump, VmaEntry *entry, uint64_t start, uint64_t end)
{
	uint64_t *guards = arena_alloc(&dump->arena, (entry->n_guards + 2) * sizeof(*guards));

	if (entry->n_guards)
		memcpy(guards, entry->guards, entry->n_guards * sizeof(*guards));
	guards[entry->n_guards++] = start;
	guards[entry->n_guards++] = end;
	entry->guards = guards;
}

/* Where a scan is: mappings and found ranges both ascend. */
struct scan_state {
	size_t vma; /* the first that may still overlap */
	uint64_t vdso_end;
	bool vdso_added;
	uint64_t taken_until; /* when its list is full, the kernel may give the last range again */
};

static bool is_lazy(const VmaEntry *vma)
{
	return (vma->status & VMA_STATUS_ANON_PRIVATE) && !(vma->flags & MAP_LOCKED) &&
	       !(vma->status & VMA_STATUS_VDSO);
}

/* Cuts a range of pages at the borders of mappings and keeps what belongs into the images. */
static void take_region(struct dump *dump, struct dump_task *task, struct scan_state *state,
			const struct page_region *region)
{
	const MmEntry *mm = task->mm;
	uint64_t start = region->start > state->taken_until ? region->start : state->taken_until;

	if (region->end > state->taken_until)
		state->taken_until = region->end;

	while (start < region->end && state->vma < mm->n_vmas) {
		VmaEntry *vma = mm->vmas[state->vma];
		if (vma->end <= start) {
			state->vma++;
			continue;
		}
		if (vma->start >= region->end)
			return;
		if (start < vma->start)
			start = vma->start;
		uint64_t end = region->end < vma->end ? region->end : vma->end;
		const struct mem_kind *kind = mem_kind_of_entry(vma);
		if (region->categories & PAGE_IS_GUARD) {
			add_guard(dump, vma, start, end);
		} else if (kind && kind->has_private_pages && !(vma->status & VMA_STATUS_VDSO)) {
			page_runs_add(task->memory, &(struct page_run){
							    .address = start,
							    .pages = (end - start) / PAGE_BYTES,
							    .huge = region->categories & PAGE_IS_HUGE,
							    .lazy = is_lazy(vma),
							    .unreadable = !(vma->prot & PROT_READ),
						    });
		}
		start = end;
	}
}

/* The vDSO's code goes into the images always: it is compared with the target kernel's. */
static void add_vdso(struct dump_task *task)
{
	uint64_t start, end;

	memory_find_vdso(task, &start, &end);
	if (start)
		page_runs_add(task->memory, &(struct page_run){.address = start, .pages = (end - start) / PAGE_BYTES});
}

static bool is_plain_anonymous(const VmaEntry *vma)
{
	return (vma->status & VMA_STATUS_ANON_PRIVATE) && !(vma->status & VMA_STATUS_VDSO);
}

/* Part of the address space that is scanned with the same question. */
struct stretch {
	uint64_t end;
	bool anonymous; /* no page of a file can be in it */
};

/*
 * To tell whether a page is of a file the kernel looks into its struct page, which costs more than all the rest (20 ms
 * for 1 GiB). Large stretches of anonymous memory are therefore asked about without that.
 */
static struct stretch find_stretch(const MmEntry *mm, size_t *vma, uint64_t start)
{
	while (*vma < mm->n_vmas && mm->vmas[*vma]->end <= start)
		++*vma;
	for (size_t first = *vma, next; first < mm->n_vmas; first = next) {
		uint64_t from = mm->vmas[first]->start > start ? mm->vmas[first]->start : start;
		next = first + 1;
		if (!is_plain_anonymous(mm->vmas[first]))
			continue;
		while (next < mm->n_vmas && is_plain_anonymous(mm->vmas[next]) &&
		       mm->vmas[next]->start == mm->vmas[next - 1]->end)
			next++;
		uint64_t end = mm->vmas[next - 1]->end;
		if (end - from >= STRETCH_BYTES)
			return from > start ? (struct stretch){from, false} : (struct stretch){end, true};
	}
	return (struct stretch){ADDRESS_SPACE_END, false};
}

static int scan_stretch(struct dump *dump, struct dump_task *task, struct scan_state *state, struct pm_scan_arg *scan,
			int pagemap_fd)
{
	const struct page_region *regions = (const struct page_region *)scan->vec;

	while (scan->start < scan->end) {
		long count = ioctl(pagemap_fd, PAGEMAP_SCAN, scan);
		if (count < 0)
			return -errno;
		for (long i = 0; i < count; i++) {
			if (!state->vdso_added && regions[i].start >= state->vdso_end) {
				add_vdso(task);
				state->vdso_added = true;
			}
			take_region(dump, task, state, &regions[i]);
		}
		scan->start = scan->walk_end;
	}
	return 0;
}

static int scan_with(struct dump *dump, struct dump_task *task, int pagemap_fd, uint64_t known_categories)
{
	_cleanup_free_ struct page_region *regions = malloc(SCAN_REGIONS * sizeof(*regions));
	uint64_t vdso_start, start = 0;
	struct scan_state state = {};
	size_t vma = 0;
	int error = 0;

	if (!regions)
		return -ENOMEM;
	memory_find_vdso(task, &vdso_start, &state.vdso_end);
	while (start < ADDRESS_SPACE_END && !error) {
		const struct stretch stretch = find_stretch(task->mm, &vma, start);
		uint64_t unwanted = PAGE_IS_PFNZERO | (stretch.anonymous ? 0 : PAGE_IS_FILE);
		struct pm_scan_arg scan = {
			.size = sizeof(scan),
			.start = start,
			.end = stretch.end,
			.vec = (uint64_t)regions,
			.vec_len = SCAN_REGIONS,
			.category_inverted = unwanted,
			.category_mask = unwanted,
			.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
			.return_mask = (PAGE_IS_HUGE | PAGE_IS_GUARD) & known_categories,
		};
		error = scan_stretch(dump, task, &state, &scan, pagemap_fd);
		start = stretch.end;
	}
	if (!error && !state.vdso_added)
		add_vdso(task);
	return error;
}

static int scan_task(struct dump *dump, struct dump_task *task)
{
	_cleanup_fd_ int fd = openat(task->proc_dirfd, "pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return fail_errno(&dump->failure, errno, "task-pagemap", dump_task_name(dump, task), NULL,
				  "cannot open its pagemap");
	int error = scan_with(dump, task, fd, ~0ULL);
	if (error == -EINVAL) /* before Linux 6.15 guard regions could not be told */
		error = scan_with(dump, task, fd, ~(uint64_t)PAGE_IS_GUARD);
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-pagemap", dump_task_name(dump, task),
				  error == -ENOTTY ? "Linux 6.7 or newer is needed (PAGEMAP_SCAN)" : NULL,
				  "cannot scan its pages");
	return 0;
}

int memory_scan(struct dump *dump)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = scan_task(dump, dump->tasks[i]);
	return error ? error : page_share_find(dump);
}
