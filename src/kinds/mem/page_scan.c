/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of a task are dumped.
 *
 * One PAGEMAP_SCAN walks a whole address space and gives the ranges of pages that are private to the mm (present or
 * swapped, not of a file, not the zero page); holes cost nothing.
 *
 * With a tracker (track.h) there are two, but for the last one, which arms nothing: the first takes the marks of
 * tracked memory and arms it again in the same step, the second finds the rest. Only pages that exist are armed: with
 * the holes a sparse mapping would fill with page tables. A tracked page without a mark has not changed, with one
 * exception: what MADV_DONTNEED leaves of an armed private page of a file is a marker that looks like a swapped page.
 * It is no page any more.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "base/parallel.h"
#include "kernel/uapi.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/page_regions.h"
#include "kinds/mem/page_runs.h"
#include "kinds/mem/traced_code.h"
#include "kinds/mem/track.h"

enum {
	PAGE_BYTES = 4096,
	STRETCH_BYTES = 4 << 20, /* worth a question of its own */
	PIECE_BYTES = 128 << 20, /* worth another thread: about a millisecond, if all pages are there */
	MAX_PIECES = 256,
};

/* An entry of /proc/PID/pagemap of a page that is not present. */
enum {
	PAGEMAP_BIT_SWAPPED = 62,
	SWAP_TYPE_MASK = 31,
	SWAP_TYPE_MARKER = 31, /* the last type: there is no page, the kernel only remembers something */
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

void page_runs_add(struct memory_map *memory, const struct page_run *run)
{
	struct page_run *last = memory->run_count ? &memory->runs[memory->run_count - 1] : NULL;

	if (last && last->address + last->pages * PAGE_BYTES == run->address && last->huge == run->huge &&
	    last->lazy == run->lazy && last->left == run->left && last->unreadable == run->unreadable &&
	    last->shared == run->shared && last->source == run->source && last->in_parent == run->in_parent &&
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
};

static bool is_lazy(const VmaEntry *vma)
{
	return (vma->status & VMA_STATUS_ANON_PRIVATE) && !(vma->flags & MAP_LOCKED) &&
	       !(vma->status & VMA_STATUS_VDSO);
}

/* Says so of tracked memory only. */
static bool is_unchanged(const struct page_region *region)
{
	return (region->categories & PAGE_IS_WPALLOWED) && !(region->categories & PAGE_IS_WRITTEN);
}

/* Cuts a range of pages at the borders of mappings and keeps what belongs into the images. */
static void take_region(struct dump *dump, struct dump_task *task, struct scan_state *state,
			const struct page_region *region)
{
	const MmEntry *mm = task->mm;
	bool unchanged = is_unchanged(region) && tracker_has_parent(dump);
	uint64_t start = region->start;

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
			page_runs_add(task->memory,
				      &(struct page_run){
					      .address = start,
					      .pages = (end - start) / PAGE_BYTES,
					      .in_parent = unchanged,
					      .huge = region->categories & PAGE_IS_HUGE,
					      .lazy = is_lazy(vma),
					      .left = dump->options->lazy_pages && is_lazy(vma) && !unchanged,
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

/* What one call of a thread scans. */
struct piece {
	uint64_t start, end;
	bool anonymous; /* of its stretch */
	struct region_list found;
	int error;
};

struct piece_list {
	int pagemap_fd;
	const struct pm_scan_arg *question;
	const struct region_list *armed; /* by the scan before, or NULL */
	struct piece *items;
	size_t count, capacity;
	bool large; /* some stretch is in several pieces */
};

/* Large stretches are cut, for all cores; reserved terabytes not into more pieces than that is worth. */
static void cut_stretch(struct piece_list *pieces, uint64_t start, const struct stretch *stretch)
{
	uint64_t bytes = stretch->anonymous ? (stretch->end - start) / MAX_PIECES : UINT64_MAX;

	if (bytes < PIECE_BYTES)
		bytes = PIECE_BYTES;
	bytes &= ~(uint64_t)(PIECE_BYTES - 1);
	for (uint64_t at = start, end; at < stretch->end; at = end) {
		end = bytes < stretch->end - at ? at + bytes : stretch->end;
		pieces->large |= end < stretch->end;
		ARRAY_GROW(pieces->items, pieces->count, pieces->capacity);
		pieces->items[pieces->count++] =
			(struct piece){.start = at, .end = end, .anonymous = stretch->anonymous};
	}
}

static void scan_piece(void *context, size_t index)
{
	struct piece_list *pieces = context;
	struct piece *piece = &pieces->items[index];
	uint64_t unwanted = PAGE_IS_PFNZERO | (piece->anonymous ? 0 : PAGE_IS_FILE);
	struct pm_scan_arg scan = *pieces->question;

	scan.start = piece->start;
	scan.end = piece->end;
	scan.category_inverted |= unwanted;
	scan.category_mask |= unwanted;
	scan.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
	piece->error = -EPERM;
	if (pieces->armed && piece->anonymous)
		piece->error = page_regions_scan_changes(pieces->pagemap_fd, &scan, true, pieces->armed, &piece->found);
	if (piece->error == -EPERM)
		piece->error = page_regions_scan(pieces->pagemap_fd, &scan, &piece->found);
}

/* The private pages of the whole address space that @question asks for. @armed: see page_regions_scan_changes(). */
static int scan_regions(const struct dump_task *task, int pagemap_fd, const struct pm_scan_arg *question,
			const struct region_list *armed, struct region_list *list)
{
	struct piece_list pieces = {.pagemap_fd = pagemap_fd, .question = question, .armed = armed};
	uint64_t start = 0;
	size_t vma = 0;
	int error = 0;

	while (start < ADDRESS_SPACE_END) {
		const struct stretch stretch = find_stretch(task->mm, &vma, start);
		cut_stretch(&pieces, start, &stretch);
		start = stretch.end;
	}
	parallel_for(pieces.count, pieces.large ? 1 : SIZE_MAX, scan_piece, &pieces);
	for (size_t i = 0; i < pieces.count; i++) {
		const struct piece *piece = &pieces.items[i];
		if (!error)
			error = piece->error;
		for (size_t r = 0; r < piece->found.count; r++)
			region_list_add(list, &piece->found.items[r]);
		free(piece->found.items);
	}
	free(pieces.items);
	return error;
}

/* Two lists that do not overlap into one. */
static void merge_regions(struct region_list *into, const struct region_list *left, const struct region_list *right)
{
	size_t l = 0, r = 0;

	while (l < left->count || r < right->count) {
		bool from_left = r == right->count || (l < left->count && left->items[l].start < right->items[r].start);
		region_list_add(into, from_left ? &left->items[l++] : &right->items[r++]);
	}
}

/* The same without arming again. */
static int scan_tracked_at_last(struct dump *dump, const struct dump_task *task, int pagemap_fd,
				uint64_t known_categories, struct region_list *list)
{
	const struct pm_scan_arg scan = {
		.return_mask = (PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_HUGE | PAGE_IS_SWAPPED | PAGE_IS_GUARD) &
			       known_categories,
	};

	return scan_regions(task, pagemap_fd, &scan, tracker_armed(dump, task), list);
}

/* Of tracked memory the marks are taken and set anew, of the rest nothing is changed. */
static int scan_tracked(struct dump *dump, const struct dump_task *task, int pagemap_fd, uint64_t known_categories,
			struct region_list *list)
{
	const struct pm_scan_arg tracked = {
		.flags = PM_SCAN_WP_MATCHING,
		.category_mask = PAGE_IS_WPALLOWED | (PAGE_IS_GUARD & known_categories),
		.category_inverted = PAGE_IS_GUARD & known_categories,
		.return_mask = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_HUGE | PAGE_IS_SWAPPED,
	};
	const struct pm_scan_arg rest = {
		.category_mask = PAGE_IS_WPALLOWED,
		.category_inverted = PAGE_IS_WPALLOWED,
		.return_mask = (PAGE_IS_HUGE | PAGE_IS_GUARD) & known_categories,
	};
	const struct pm_scan_arg guards = {
		.category_mask = PAGE_IS_WPALLOWED | PAGE_IS_GUARD,
		.return_mask = PAGE_IS_GUARD,
	};
	struct region_list armed = {}, others = {}, guarded = {}, both = {};

	tracker_arming(dump);
	tracker_set_armed(dump, task, NULL);
	int error = scan_regions(task, pagemap_fd, &tracked, NULL, &armed);
	if (!error)
		error = scan_regions(task, pagemap_fd, &rest, NULL, &others);
	if (!error && (known_categories & PAGE_IS_GUARD))
		error = scan_regions(task, pagemap_fd, &guards, NULL, &guarded);
	if (!error) {
		merge_regions(&both, &armed, &others);
		merge_regions(list, &both, &guarded);
		tracker_set_armed(dump, task, &armed);
	}
	free(armed.items);
	free(others.items);
	free(guarded.items);
	free(both.items);
	return error;
}

static int scan_plain(const struct dump_task *task, int pagemap_fd, uint64_t known_categories, struct region_list *list)
{
	const struct pm_scan_arg scan = {.return_mask = (PAGE_IS_HUGE | PAGE_IS_GUARD) & known_categories};

	return scan_regions(task, pagemap_fd, &scan, NULL, list);
}

static int scan_with(struct dump *dump, const struct dump_task *task, int pagemap_fd, bool tracked,
		     uint64_t known_categories, struct region_list *list)
{
	list->count = 0;
	if (tracked && dump->options->tracking_ends) {
		tracker_arming(dump);
		return scan_tracked_at_last(dump, task, pagemap_fd, known_categories, list);
	}
	return tracked ? scan_tracked(dump, task, pagemap_fd, known_categories, list)
		       : scan_plain(task, pagemap_fd, known_categories, list);
}

/* Swapped pages of @region one by one: markers of dropped pages are left out. Returns 0 or -errno. */
static int take_swapped(struct dump *dump, struct dump_task *task, struct scan_state *state,
			const struct page_region *region, int pagemap_fd)
{
	for (uint64_t address = region->start; address < region->end;) {
		uint64_t entries[512], left = (region->end - address) / PAGE_BYTES;
		size_t count = left < ARRAY_SIZE(entries) ? left : ARRAY_SIZE(entries);
		int error = pread_full(pagemap_fd, entries, count * sizeof(*entries), address / PAGE_BYTES * 8);
		if (error < 0)
			return error;
		for (size_t i = 0; i < count; i++, address += PAGE_BYTES) {
			struct page_region page = {address, address + PAGE_BYTES, region->categories};
			bool swapped = entries[i] >> PAGEMAP_BIT_SWAPPED & 1;
			if (!swapped || (entries[i] & SWAP_TYPE_MASK) != SWAP_TYPE_MARKER)
				take_region(dump, task, state, &page);
		}
	}
	return 0;
}

static int take_regions(struct dump *dump, struct dump_task *task, int pagemap_fd, const struct region_list *list)
{
	uint64_t vdso_start, vdso_end;
	struct scan_state state = {};
	bool vdso_added = false;
	int error = 0;

	memory_find_vdso(task, &vdso_start, &vdso_end);
	for (size_t i = 0; i < list->count && !error; i++) {
		const struct page_region *region = &list->items[i];
		if (!vdso_added && region->start >= vdso_end) {
			add_vdso(task);
			vdso_added = true;
		}
		if (is_unchanged(region) && (region->categories & PAGE_IS_SWAPPED))
			error = take_swapped(dump, task, &state, region, pagemap_fd);
		else
			take_region(dump, task, &state, region);
	}
	if (!vdso_added)
		add_vdso(task);
	return error;
}

static int scan_with_known(struct dump *dump, const struct dump_task *task, int pagemap_fd, bool tracked,
			   struct region_list *list)
{
	int error = scan_with(dump, task, pagemap_fd, tracked, ~0ULL, list);

	if (error == -EINVAL) /* before Linux 6.15 guard regions could not be told */
		error = scan_with(dump, task, pagemap_fd, tracked, ~(uint64_t)PAGE_IS_GUARD, list);
	return error;
}

/* Without tracking a scan changes nothing, so it is done for all tasks side by side. */
static int scan_in_advance(struct dump *dump, struct dump_task *task, void *context)
{
	struct region_list *lists = context;
	_cleanup_fd_ int fd = openat(task->proc_dirfd, "pagemap", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : scan_with_known(dump, task, fd, false, &lists[task->index]);
}

static int fail_scan(struct dump *dump, const struct dump_task *task, int error)
{
	return fail_errno(&dump->failure, error, "task-pagemap", dump_task_name(dump, task),
			  error == -ENOTTY ? "Linux 6.7 or newer is needed (PAGEMAP_SCAN)" : NULL,
			  "cannot scan its pages");
}

static int scan_tracked_task(struct dump *dump, struct dump_task *task)
{
	_cleanup_fd_ int fd = openat(task->proc_dirfd, "pagemap", O_RDONLY | O_CLOEXEC);
	struct region_list list = {};

	if (fd < 0)
		return fail_scan(dump, task, errno);
	int tracked = tracker_register(dump, task, fd);
	int error = tracked < 0 ? tracked : scan_with_known(dump, task, fd, tracked, &list);
	if (!error)
		error = take_regions(dump, task, fd, &list);
	free(list.items);
	return error ? fail_scan(dump, task, error) : 0;
}

static int scan_untracked_tasks(struct dump *dump)
{
	_cleanup_free_ struct region_list *lists = xcalloc(dump->task_count, sizeof(*lists));
	struct dump_task *failed;
	int error = memory_for_tasks(dump, scan_in_advance, lists, &failed);

	if (error < 0)
		fail_scan(dump, failed, error);
	for (size_t i = 0; i < dump->task_count; i++) {
		if (dump->tasks[i]->memory && !error)
			/* No page is unchanged since an earlier dump, so the pagemap is not looked at. */
			error = take_regions(dump, dump->tasks[i], -1, &lists[i]);
		free(lists[i].items);
	}
	return error;
}

int memory_scan_tasks(struct dump *dump)
{
	int error = 0;

	if (!dump->options->tracker || dump->only_explain)
		return scan_untracked_tasks(dump);
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = scan_tracked_task(dump, dump->tasks[i]);
	return error;
}

int memory_scan(struct dump *dump)
{
	int error = memory_scan_tasks(dump);

	if (!error)
		error = traced_code_refuse(dump);
	/* Pages that stay with their task cannot be told from elsewhere. */
	return error || dump->options->lazy_pages ? error : page_share_find(dump);
}
