/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading pages into place, with all cores for large mappings.
 *
 * Fresh pages cost more to get from the kernel than to copy, so ranges that were huge are asked for as huge pages
 * first and others are populated a piece at a time before they are read into. In an
 * inherited mapping only what differs from the parent is touched: pages of the same identity stay shared, pages that
 * the images hold twice are compared, pages that only the parent has are dropped.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "kernel/uapi.h"
#include "restore/memory.h"

enum {
	PAGE_BYTES = 4096,
	PIECE_BYTES = 1024 * 1024,
	COMPARE_BYTES = 256 * 1024,
	THREAD_WORTH_BYTES = 16 * 1024 * 1024,
	MAX_THREADS = 16,
};

struct load {
	char *to;
	uint64_t bytes;
	uint64_t offset;
	int fd;
	bool huge;
	bool compare; /* the destination may hold the same content already */
};

struct loader {
	struct restore *restore;
	struct load *loads;
	size_t count, capacity;
	uint64_t total;
	atomic_size_t next;
	atomic_int error;
};

/* Cut into pieces, so that threads share even one large run. */
static void add_load(struct loader *loader, struct load load)
{
	uint64_t left = load.bytes;

	while (left) {
		uint64_t bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
		load.bytes = bytes;
		ARRAY_GROW(loader->loads, loader->count, loader->capacity);
		loader->loads[loader->count++] = load;
		load.to += bytes;
		load.offset += bytes;
		loader->total += bytes;
		left -= bytes;
	}
}

static int load_compared(const struct load *load, struct restore_page_counts *counts)
{
	/* Not zeroed, and no larger than needed: most of these loads are a page or two. */
	size_t buffer_bytes = load->bytes < COMPARE_BYTES ? load->bytes : COMPARE_BYTES;
	_cleanup_free_ char *buffer = xrealloc_array(NULL, buffer_bytes, 1);

	for (uint64_t done = 0; done < load->bytes; done += COMPARE_BYTES) {
		uint64_t bytes = load->bytes - done < COMPARE_BYTES ? load->bytes - done : COMPARE_BYTES;
		int error = pread_full(load->fd, buffer, bytes, load->offset + done);
		if (error < 0)
			return error;
		counts->compared += bytes / PAGE_BYTES;
		for (uint64_t at = 0; at < bytes; at += PAGE_BYTES) {
			bool equal = !memcmp(load->to + done + at, buffer + at, PAGE_BYTES);
			counts->compared_equal += equal;
			counts->restored += !equal;
			if (!equal)
				memcpy(load->to + done + at, buffer + at, PAGE_BYTES);
		}
	}
	return 0;
}

static int load_piece(const struct load *load, struct restore_page_counts *counts)
{
	if (load->compare)
		return load_compared(load, counts);
	counts->restored = load->bytes / PAGE_BYTES;
	/* Advice only: an older kernel says no and the read brings the pages in one by one. */
	if (!load->huge && load->bytes > PAGE_BYTES)
		madvise(load->to, load->bytes, MADV_POPULATE_WRITE);
	return pread_full(load->fd, load->to, load->bytes, load->offset);
}

static void *run_loads(void *argument)
{
	struct loader *loader = argument;

	while (!atomic_load(&loader->error)) {
		size_t index = atomic_fetch_add(&loader->next, 1);
		if (index >= loader->count)
			return NULL;
		struct restore_page_counts counts = {};
		int error = load_piece(&loader->loads[index], &counts);
		if (error < 0)
			atomic_store(&loader->error, error);
		else
			restore_count_pages(loader->restore, &counts);
	}
	return NULL;
}

static int run_loader(struct restore *restore, struct loader *loader)
{
	size_t want = 1 + loader->total / THREAD_WORTH_BYTES, started = 1;
	/* Asking how many there are means reading a file. */
	size_t cores = want > 1 ? sysconf(_SC_NPROCESSORS_ONLN) : 1;
	pthread_t threads[MAX_THREADS];

	if (want > cores)
		want = cores;
	if (want > MAX_THREADS)
		want = MAX_THREADS;
	while (started < want && !pthread_create(&threads[started], NULL, run_loads, loader))
		started++;
	run_loads(loader);
	for (size_t i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	int error = atomic_load(&loader->error);
	return error ? fail_errno(&restore->failure, error, "image-read", NULL, "copy the images again",
				  "cannot load its pages")
		     : 0;
}

static int plan_part(struct restore *restore, struct loader *loader, const struct page_place *part, uint64_t shift,
		     bool compare)
{
	int fd, error = page_chain_open(restore->page_chain, part->source, &fd);

	if (!error)
		add_load(loader, (struct load){
					 .to = (char *)(part->address + shift),
					 .bytes = part->pages * PAGE_BYTES,
					 .offset = part->first_page * PAGE_BYTES,
					 .fd = fd,
					 .huge = part->huge,
					 .compare = compare,
				 });
	return error;
}

/*
 * Own pages against the base's, address by address: the same page of the same file is there already; another one is
 * compared, because plain images hold each task's copy.
 */
static int plan_difference(struct restore *restore, struct loader *loader, const struct page_place *part,
			   const struct page_places *base, uint64_t shift)
{
	uint64_t end = part->address + part->pages * PAGE_BYTES;
	size_t index = page_places_find(base, part->address);
	struct page_place rest = *part, other;
	int error = 0;

	while (rest.pages && !error) {
		bool found = page_places_part(base, &index, rest.address, end, &other);
		uint64_t next = found ? other.address : end;
		struct page_place piece = rest;
		bool compare = false, same = false;
		if (next > rest.address) {
			piece.pages = (next - rest.address) / PAGE_BYTES;
			index -= found; /* look at it again from its own address */
		} else {
			piece.pages = other.pages < rest.pages ? other.pages : rest.pages;
			same = other.source == rest.source && other.first_page == rest.first_page;
			compare = !same;
		}
		if (!same)
			error = plan_part(restore, loader, &piece, shift, compare);
		rest.address += piece.pages * PAGE_BYTES;
		rest.first_page += piece.pages;
		rest.pages -= piece.pages;
	}
	return error;
}

static void drop_pages(uint64_t start, uint64_t end, uint64_t shift)
{
	if (end > start)
		madvise((void *)(start + shift), end - start, MADV_DONTNEED);
}

/* Pages that came with the fork and that this task does not have. */
static void drop_foreign(const struct page_places *own, const struct page_places *base, uint64_t start, uint64_t end,
			 uint64_t shift)
{
	size_t base_index = page_places_find(base, start);
	struct page_place theirs, mine;

	while (page_places_part(base, &base_index, start, end, &theirs)) {
		uint64_t at = theirs.address, stop = theirs.address + theirs.pages * PAGE_BYTES;
		size_t own_index = page_places_find(own, at);
		while (page_places_part(own, &own_index, at, stop, &mine)) {
			drop_pages(at, mine.address, shift);
			at = mine.address + mine.pages * PAGE_BYTES;
		}
		drop_pages(at, stop, shift);
	}
}

int pages_load(struct restore *restore, size_t vma_index, const struct page_places *own, const struct page_places *base)
{
	const struct restore_memory *memory = restore->self->memory;
	const VmaEntry *vma = restore->self->mm->vmas[vma_index];
	uint64_t shift = memory->placed[vma_index] - vma->start;
	size_t index = page_places_find(own, vma->start);
	struct loader loader = {.restore = restore};
	struct page_place part;
	int error = 0;

	while (!error && page_places_part(own, &index, vma->start, vma->end, &part)) {
		if (part.huge && (vma->madv >> MADV_HUGEPAGE & 1) && !base)
			madvise((void *)(part.address + shift), part.pages * PAGE_BYTES, MADV_HUGEPAGE);
		error = base ? plan_difference(restore, &loader, &part, base, shift)
			     : plan_part(restore, &loader, &part, shift, false);
	}
	if (!error && base)
		drop_foreign(own, base, vma->start, vma->end, shift);
	if (!error && loader.count)
		error = run_loader(restore, &loader);
	free(loader.loads);
	return error;
}

int restore_read_pages(struct restore *restore, const struct restore_task *task, uint64_t address, void *buffer,
		       size_t bytes)
{
	size_t index = page_places_find(task->memory->places, address);
	uint64_t expected = address, end = address + bytes;
	struct page_place part;

	while (page_places_part(task->memory->places, &index, address, end, &part) && part.address == expected) {
		int fd, error = page_chain_open(restore->page_chain, part.source, &fd);
		if (!error) {
			error = pread_full(fd, (char *)buffer + (part.address - address), part.pages * PAGE_BYTES,
					   part.first_page * PAGE_BYTES);
			if (error < 0)
				fail_errno(&restore->failure, error, "image-read", NULL, "copy the images again",
					   "cannot read its pages");
		}
		if (error < 0)
			return error;
		expected += part.pages * PAGE_BYTES;
	}
	if (expected != end)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "pages at %lx are missing", expected);
	return 0;
}
