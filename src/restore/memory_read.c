/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the page images: where each page of each task comes from.
 *
 * Entry: mm images are read. A pagemap names pages that follow each other in a pages file, or pages of another task
 * (the shared-pages extension). References are resolved here, so that two tasks hold the same page if and only if
 * their places name the same page of the same file: that is what a fork can give back.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "kernel/maps.h"
#include "kinds/mem/mem_kind.h"
#include "restore/memory.h"

#include "pagemap.pb-c.h"

enum { PAGE_BYTES = 4096, TASK_DEAD = 2 };

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

static void add_place(struct restore_memory *memory, const struct page_place *place)
{
	struct page_place *last = memory->place_count ? &memory->places[memory->place_count - 1] : NULL;

	if (last && last->address + last->pages * PAGE_BYTES == place->address && last->pages_id == place->pages_id &&
	    last->first_page + last->pages == place->first_page && last->huge == place->huge) {
		last->pages += place->pages;
		return;
	}
	memory->has_huge |= place->huge;
	ARRAY_GROW(memory->places, memory->place_count, memory->place_capacity);
	memory->places[memory->place_count++] = *place;
}

static struct page_place *find_place(const struct restore_memory *memory, uint64_t address)
{
	size_t low = 0, high = memory->place_count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		struct page_place *place = &memory->places[middle];
		if (address < place->address)
			high = middle;
		else if (address >= place->address + place->pages * PAGE_BYTES)
			low = middle + 1;
		else
			return place;
	}
	return NULL;
}

static int resolve_shared(struct restore *restore, struct restore_task *task, const PagemapEntry *entry, uint64_t pages)
{
	struct restore_task *source = restore_find_task(restore, entry->source_pid);
	uint64_t from = entry->source_vaddr, address = entry->vaddr;

	if (!source || source == task || !source->memory || source->index > task->index)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
			    "pages at %lx refer to process %u, which does not hold them", entry->vaddr,
			    entry->source_pid);
	while (pages) {
		const struct page_place *place = find_place(source->memory, from);
		if (!place)
			return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
				    "pages at %lx refer to pages that process %u does not have", entry->vaddr,
				    entry->source_pid);
		uint64_t skip = (from - place->address) / PAGE_BYTES;
		uint64_t count = place->pages - skip < pages ? place->pages - skip : pages;
		struct page_place copy = *place;
		copy.address = address;
		copy.pages = count;
		copy.first_page += skip;
		add_place(task->memory, &copy);
		pages -= count;
		from += count * PAGE_BYTES;
		address += count * PAGE_BYTES;
	}
	return 0;
}

/* The number of pages of an entry, checked against the address space and the entry before. */
static int entry_pages(struct restore *restore, const PagemapEntry *entry, uint64_t previous_end, uint64_t *ret_pages)
{
	uint64_t pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages;

	if (entry->vaddr % PAGE_BYTES || entry->vaddr < previous_end || entry->vaddr >= ADDRESS_SPACE_END ||
	    pages > (ADDRESS_SPACE_END - entry->vaddr) / PAGE_BYTES)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
			    "pagemap entry at %lx with %lu pages is out of order or range", entry->vaddr, pages);
	*ret_pages = pages;
	return 0;
}

static int check_pages_file(struct restore *restore, uint32_t pages_id, uint64_t pages)
{
	struct stat stat;
	char name[64];

	image_name(IMAGE_PAGES, pages_id, name, sizeof(name));
	if (fstatat(restore->images_dirfd, name, &stat, 0) < 0)
		return fail_errno(&restore->failure, errno, "image-open", name, "copy the whole images directory",
				  "cannot open the image file");
	if ((uint64_t)stat.st_size / PAGE_BYTES < pages)
		return fail(&restore->failure, EINVAL, "image-truncated", name, "copy the images again",
			    "it holds %lu pages, its pagemap names %lu", (uint64_t)stat.st_size / PAGE_BYTES, pages);
	return 0;
}

static int read_entries(struct restore *restore, struct restore_task *task, struct image *image, uint32_t pages_id)
{
	uint64_t next_page = 0, previous_end = 0;
	ProtobufCMessage *message;
	int result;

	while ((result = image_read(image, &message)) > 0) {
		const PagemapEntry *entry = (const void *)message;
		uint32_t flags = entry->has_flags   ? entry->flags
				 : entry->in_parent ? PAGEMAP_IN_PARENT
						    : PAGEMAP_PRESENT;
		uint64_t pages;
		result = entry_pages(restore, entry, previous_end, &pages);
		if (!result && (flags & PAGEMAP_IN_PARENT))
			result = fail(&restore->failure, EOPNOTSUPP, "image-parent", NULL,
				      "dump again without --track-mem and --prev-images-dir",
				      "its pages lie in parent images, which come with live migration");
		if (!result && (flags & PAGEMAP_SHARED))
			result = resolve_shared(restore, task, entry, pages);
		if (!result && (flags & PAGEMAP_PRESENT)) {
			add_place(task->memory, &(struct page_place){
							.address = entry->vaddr,
							.pages = pages,
							.pages_id = pages_id,
							.first_page = next_page,
							.huge = flags & PAGEMAP_HUGE,
						});
			next_page += pages;
		}
		previous_end = entry->vaddr + pages * PAGE_BYTES;
		image_message_free(message);
		if (result < 0)
			return result;
	}
	task->memory->own_pages = next_page;
	return result < 0 ? result : check_pages_file(restore, pages_id, next_page);
}

static int read_task(struct restore *restore, struct restore_task *task)
{
	struct image *image;
	ProtobufCMessage *message;
	int error = image_open(restore->images_dirfd, &restore->failure, IMAGE_PAGEMAP, task->pid, &image);

	if (error == -ENOENT)
		return fail(&restore->failure, ENOENT, "image-missing", restore_task_name(restore, task),
			    "copy the whole images directory", "pagemap-%d.img is missing", task->pid);
	if (error < 0)
		return error;
	task->memory = arena_alloc(&restore->arena, sizeof(*task->memory));
	task->memory->placed = arena_alloc(&restore->arena, task->mm->n_vmas * sizeof(uint64_t));
	task->memory->inherited = arena_alloc(&restore->arena, task->mm->n_vmas * sizeof(bool));
	error = image_read(image, &message);
	if (error == 0)
		error = fail(&restore->failure, EINVAL, "image-truncated", NULL, "copy the images again",
			     "pagemap-%d.img is empty", task->pid);
	if (error > 0) {
		uint32_t pages_id = ((const PagemapHead *)message)->pages_id;
		image_message_free(message);
		error = read_entries(restore, task, image, pages_id);
	}
	image_close(&image);
	return error < 0 ? fail_in(&restore->failure, "%s", restore_task_name(restore, task)) : 0;
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
	struct mappings own = {};
	struct range gap;
	size_t count = 0, capacity = 0;
	int error = proc_fd < 0 ? -errno : mappings_read_short(proc_fd, &own);

	if (error < 0)
		return fail_errno(&restore->failure, error, "restore-maps", NULL, NULL, "cannot read /proc/self/maps");
	for (size_t i = 0; i < own.count; i++)
		if (own.items[i].end <= ADDRESS_SPACE_END) { /* not the vsyscall page */
			ARRAY_GROW(ranges, count, capacity);
			ranges[count++] = (struct range){own.items[i].start, own.items[i].end};
		}
	mappings_free(&own);
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
	return find_stage(restore);
}
