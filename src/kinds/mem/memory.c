/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages are dumped, and how those that fork shared are found.
 *
 * One PAGEMAP_SCAN walks a whole address space and gives the ranges of pages that are private to the mm (present or
 * swapped, not of a file, not the zero page); holes cost nothing. In a tree of several tasks the page frame numbers
 * of these pages tell which tasks still share a page since a fork: the first task that has it writes it, the others
 * refer to it. A page that is mapped once only (the exclusive bit) needs no look-up.
 */
#include "kinds/mem/memory.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/uapi.h"
#include "kinds/mem/mem_kind.h"

enum {
	PAGE_BYTES = 4096,
	SCAN_REGIONS = 4096,
	MAX_THREADS = 16,
	TASKS_WORTH_A_THREAD = 8,
	/* Below this many shared pages the images stay in the plain format that every reader knows. */
	SHARED_PAGES_WORTH_AN_EXTENSION = 1024,
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

enum {
	PAGEMAP_FRAME_BITS = 55,
	PAGEMAP_BIT_EXCLUSIVE = 56,
	PAGEMAP_BIT_PRESENT = 63,
};

/* smaps walks the page tables, so trees of many tasks are read by all cores. */
struct collection {
	struct dump *dump;
	atomic_size_t next;
	atomic_int error;
	_Atomic(struct dump_task *) failed;
};

static void *collect_tasks(void *argument)
{
	struct collection *collection = argument;
	struct dump *dump = collection->dump;
	size_t index;

	while ((index = atomic_fetch_add(&collection->next, 1)) < dump->task_count) {
		struct dump_task *task = dump->tasks[index];
		if (task->state == TASK_STATE_DEAD)
			continue;
		task->memory = xcalloc(1, sizeof(*task->memory));
		int error = mappings_read(task->proc_dirfd, &task->memory->mappings);
		if (error < 0) {
			atomic_store(&collection->failed, task);
			atomic_store(&collection->error, error);
		}
	}
	return NULL;
}

int memory_collect(struct dump *dump)
{
	struct collection collection = {.dump = dump};
	pthread_t threads[MAX_THREADS];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t started = 0;

	while (dump->task_count > TASKS_WORTH_A_THREAD && (long)started + 1 < cores && started < MAX_THREADS &&
	       !pthread_create(&threads[started], NULL, collect_tasks, &collection))
		started++;
	collect_tasks(&collection);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	int error = atomic_load(&collection.error);
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-maps",
				  dump_task_name(dump, atomic_load(&collection.failed)), NULL,
				  "cannot read its mappings");
	return 0;
}

void memory_find_vdso(const struct dump_task *task, uint64_t *ret_start, uint64_t *ret_end)
{
	const struct mappings *mappings = &task->memory->mappings;

	*ret_start = *ret_end = 0;
	for (size_t i = mappings->count; i-- > 0;)
		if (!strcmp(mappings->items[i].name, "[vdso]")) {
			*ret_start = mappings->items[i].start;
			*ret_end = mappings->items[i].end;
			return;
		}
}

static uint32_t generic_flags(const struct mapping *mapping)
{
	return (mapping->flags & MAPPING_GROWS_DOWN ? MAP_GROWSDOWN : 0) |
	       (mapping->flags & MAPPING_LOCKED ? MAP_LOCKED : 0) |
	       (mapping->flags & MAPPING_NO_RESERVE ? MAP_NORESERVE : 0);
}

static int describe_mapping(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	const struct mem_kind *kind = mem_kind_of_mapping(mapping);

	entry->start = mapping->start;
	entry->end = mapping->end;
	entry->pgoff = mapping->offset;
	entry->prot = mapping->protection;
	entry->fd = -1;
	entry->flags = generic_flags(mapping);
	entry->has_madv = mapping->advice != 0;
	entry->madv = mapping->advice;
	entry->has_sealed = entry->sealed = mapping->flags & MAPPING_SEALED;
	entry->has_lock_on_fault = entry->lock_on_fault = mapping->flags & MAPPING_LOCK_ON_FAULT;
	if (!kind->dump(dump, task, mapping, entry))
		return 0;
	fail_in(&dump->failure, "%s: mapping %lx-%lx", dump_task_name(dump, task), mapping->start, mapping->end);
	return dump_blocked(dump);
}

/* The kernel's own data pages show as several mappings in a row on newer kernels; the images know one. */
static bool continues_vvar(const VmaEntry *before, const VmaEntry *entry)
{
	return before && before->end == entry->start && before->status == entry->status &&
	       (entry->status & VMA_STATUS_VVAR);
}

int memory_describe(struct dump *dump, struct dump_task *task)
{
	const struct mappings *mappings = &task->memory->mappings;
	VmaEntry *entries = arena_alloc(&dump->arena, mappings->count * sizeof(*entries));
	VmaEntry **vmas = arena_alloc(&dump->arena, mappings->count * sizeof(*vmas));
	size_t count = 0;

	for (size_t i = 0; i < mappings->count; i++) {
		VmaEntry *entry = &entries[i];
		vma_entry__init(entry);
		int error = describe_mapping(dump, task, &mappings->items[i], entry);
		if (error < 0)
			return error;
		if (continues_vvar(count ? vmas[count - 1] : NULL, entry))
			vmas[count - 1]->end = entry->end;
		else
			vmas[count++] = entry;
	}
	task->mm->vmas = vmas;
	task->mm->n_vmas = count;
	return 0;
}

static void add_run(struct memory_map *memory, const struct page_run *run)
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
	size_t vma;           /* the first that may still overlap */
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
			add_run(task->memory, &(struct page_run){
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
		add_run(task->memory, &(struct page_run){.address = start, .pages = (end - start) / PAGE_BYTES});
}

static int scan_with(struct dump *dump, struct dump_task *task, int pagemap_fd, uint64_t known_categories)
{
	_cleanup_free_ struct page_region *regions = xcalloc(SCAN_REGIONS, sizeof(*regions));
	uint64_t vdso_start, vdso_end;
	struct scan_state state = {};
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.end = ADDRESS_SPACE_END,
		.vec = (uint64_t)regions,
		.vec_len = SCAN_REGIONS,
		.category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO,
		.category_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = (PAGE_IS_HUGE | PAGE_IS_GUARD) & known_categories,
	};
	bool vdso_added = false;

	memory_find_vdso(task, &vdso_start, &vdso_end);
	while (scan.start < scan.end) {
		long count = ioctl(pagemap_fd, PAGEMAP_SCAN, &scan);
		if (count < 0)
			return -errno;
		for (long i = 0; i < count; i++) {
			if (!vdso_added && regions[i].start >= vdso_end) {
				add_vdso(task);
				vdso_added = true;
			}
			take_region(dump, task, &state, &regions[i]);
		}
		scan.start = scan.walk_end;
	}
	if (!vdso_added)
		add_vdso(task);
	return 0;
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

/* ---- what fork shared ---- */

/* Open addressing, page frame to the page that the images hold; a tree has millions of pages. */
struct frame_table {
	struct frame {
		uint64_t frame; /* 0 = empty */
		struct dump_task *task;
		uint64_t address;
	} * slots;
	size_t mask, used;
};

static struct frame *frame_slot(struct frame_table *table, uint64_t frame)
{
	size_t at = (frame * 0x9e3779b97f4a7c15ULL) >> 20 & table->mask;

	while (table->slots[at].frame && table->slots[at].frame != frame)
		at = (at + 1) & table->mask;
	return &table->slots[at];
}

static void frame_table_grow(struct frame_table *table)
{
	struct frame_table larger = {.mask = table->slots ? table->mask * 2 + 1 : 4095};

	larger.slots = xcalloc(larger.mask + 1, sizeof(*larger.slots));
	for (size_t i = 0; table->slots && i <= table->mask; i++)
		if (table->slots[i].frame)
			*frame_slot(&larger, table->slots[i].frame) = table->slots[i];
	larger.used = table->used;
	free(table->slots);
	*table = larger;
}

static bool is_shared_candidate(uint64_t pagemap_entry)
{
	return (pagemap_entry >> PAGEMAP_BIT_PRESENT & 1) && !(pagemap_entry >> PAGEMAP_BIT_EXCLUSIVE & 1) &&
	       (pagemap_entry & ((1ULL << PAGEMAP_FRAME_BITS) - 1));
}

/* Replaces the runs of @task by finer ones that say which pages another task holds already. */
static int find_shared_pages(struct dump *dump, struct dump_task *task, struct frame_table *table, uint64_t *ret_shared)
{
	_cleanup_fd_ int fd = openat(task->proc_dirfd, "pagemap", O_RDONLY | O_CLOEXEC);
	struct memory_map *memory = task->memory;
	_cleanup_free_ struct page_run *whole = TAKE_POINTER(memory->runs);
	size_t whole_count = memory->run_count;
	enum { ENTRIES = 8192 };
	_cleanup_free_ uint64_t *entries = xcalloc(ENTRIES, sizeof(*entries));

	if (fd < 0)
		return fail_errno(&dump->failure, errno, "task-pagemap", dump_task_name(dump, task), NULL,
				  "cannot open its pagemap");
	memory->run_count = memory->run_capacity = 0;
	for (size_t i = 0; i < whole_count; i++) {
		for (uint64_t done = 0; done < whole[i].pages;) {
			uint64_t address = whole[i].address + done * PAGE_BYTES;
			size_t count = whole[i].pages - done < ENTRIES ? whole[i].pages - done : ENTRIES;
			int error = pread_full(fd, entries, count * sizeof(*entries), address / PAGE_BYTES * 8);
			if (error < 0)
				return fail_errno(&dump->failure, error, "task-pagemap", dump_task_name(dump, task),
						  NULL, "cannot read its pagemap");
			for (size_t p = 0; p < count; p++, address += PAGE_BYTES) {
				struct page_run run = whole[i];
				run.address = address;
				run.pages = 1;
				if (is_shared_candidate(entries[p])) {
					run.shared = true;
					if (table->used * 2 >= table->mask)
						frame_table_grow(table);
					uint64_t number = entries[p] & ((1ULL << PAGEMAP_FRAME_BITS) - 1);
					struct frame *frame = frame_slot(table, number);
					if (frame->frame && frame->task != task) {
						run.source = frame->task;
						run.source_address = frame->address;
						++*ret_shared;
					} else if (!frame->frame) {
						*frame = (struct frame){number, task, address};
						table->used++;
					}
				}
				add_run(memory, &run);
			}
			done += count;
		}
	}
	return 0;
}

/* Few shared pages: write them in full, as every reader understands it. */
static void forget_sources(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		struct memory_map *memory = dump->tasks[i]->memory;
		if (!memory)
			continue;
		_cleanup_free_ struct page_run *runs = TAKE_POINTER(memory->runs);
		size_t count = memory->run_count;
		memory->run_count = memory->run_capacity = 0;
		for (size_t r = 0; r < count; r++) {
			runs[r].source = NULL;
			add_run(memory, &runs[r]);
		}
	}
}

int memory_scan(struct dump *dump)
{
	struct frame_table table = {};
	uint64_t shared = 0;
	size_t live = 0;
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++) {
		if (!dump->tasks[i]->memory)
			continue;
		error = scan_task(dump, dump->tasks[i]);
		live++;
	}
	if (error || live < 2)
		return error;
	frame_table_grow(&table);
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = find_shared_pages(dump, dump->tasks[i], &table, &shared);
	free(table.slots);
	if (!error && (shared < SHARED_PAGES_WORTH_AN_EXTENSION || dump->options->format_plain))
		forget_sources(dump);
	log_info("pages shared since a fork: %lu", shared);
	return error;
}

bool memory_has_shared_runs(const struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t r = 0; dump->tasks[i]->memory && r < dump->tasks[i]->memory->run_count; r++)
			if (dump->tasks[i]->memory->runs[r].source)
				return true;
	return false;
}

void memory_free(struct dump_task *task)
{
	if (!task->memory)
		return;
	mappings_free(&task->memory->mappings);
	free(task->memory->runs);
	free(task->memory);
	task->memory = NULL;
}
