/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tmpfs tells its holes (SEEK_DATA), so a sparse terabyte costs what is in it. Pages that exist but are zero (a hole
 * that was read through a mapping) are in the pagemap, and are holes in the pages file and again after the restore.
 */
#include "kinds/mem/shmem_pages.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "image/image.h"
#include "image/page_chain.h"
#include "kinds/mem/page_copy.h"
#include "kinds/mem/page_send.h"
#include "kinds/mem/shmem_track.h"
#include "model/page_sink.h"

#include "pagemap.pb-c.h"

enum {
	PAGE_BYTES = 4096,
	PIECE_BYTES = 256 * 1024,
};

/* Ranges of one file; the pages file has them one after another. */
struct range_list {
	struct page_range *items;
	size_t count, capacity;
	uint64_t total_bytes;
};

static uint64_t round_up(uint64_t bytes)
{
	return (bytes + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
}

/* ---- dump ---- */

static int find_data(int fd, uint64_t size, struct range_list *list)
{
	off_t data = size ? lseek(fd, 0, SEEK_DATA) : -1;

	if (!size)
		return 0;
	while (data >= 0) {
		off_t hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		uint64_t start = data & ~(off_t)(PAGE_BYTES - 1), end = round_up(hole);
		ARRAY_GROW(list->items, list->count, list->capacity);
		list->items[list->count++] = (struct page_range){start, list->total_bytes, end - start};
		list->total_bytes += end - start;
		data = lseek(fd, hole, SEEK_DATA);
	}
	return errno == ENXIO ? 0 : -errno;
}

static int write_pagemap(struct dump *dump, const struct range_list *list, uint32_t id, uint32_t pages_id)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;
	struct image *image;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_SHMEM_PAGEMAP, id, &image);

	if (error < 0)
		return error;
	head.pages_id = pages_id;
	image_write(image, &head.base);
	for (size_t i = 0; i < list->count; i++) {
		PagemapEntry entry = PAGEMAP_ENTRY__INIT;
		entry.vaddr = list->items[i].from;
		entry.has_flags = entry.has_nr_pages = true;
		entry.flags = PAGEMAP_PRESENT;
		entry.nr_pages = list->items[i].bytes / PAGE_BYTES;
		image_write(image, &entry.base);
	}
	return image_close(&image);
}

static int write_data(struct dump *dump, int fd, const struct range_list *list, uint32_t pages_id)
{
	bool writing;
	char name[64];

	image_name(IMAGE_PAGES, pages_id, name, sizeof(name));
	_cleanup_fd_ int pages = openat(dump->images_dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (pages < 0 || ftruncate(pages, list->total_bytes) < 0)
		return fail_errno(&dump->failure, errno, "image-write", name, NULL, "cannot make the image file");
	int error = page_copy(fd, pages, list->total_bytes, list->items, list->count, &writing);
	if (error < 0)
		return fail_errno(&dump->failure, error, writing ? "image-write" : "shmem-read", writing ? name : NULL,
				  error == -ENOSPC ? "free space, or choose another --images-dir" : NULL,
				  writing ? "cannot write memory pages" : "cannot read shared memory");
	return 0;
}

static int write_files(struct dump *dump, int fd, const struct range_list *list, uint32_t id)
{
	uint32_t pages_id = ++dump->last_pages_id;
	int error = write_data(dump, fd, list, pages_id);

	return error ? error : write_pagemap(dump, list, id, pages_id);
}

/* Where pages go that a sink takes. */
struct sending {
	struct dump *dump;
	uint32_t id;
	struct tracked_shmem *tracked; /* NULL: all of them */
	atomic_uint_fast64_t sent_bytes;
};

static int send_pages(void *context, uint64_t offset, const char *data, size_t bytes)
{
	struct sending *sending = context;
	struct page_sink *sink = sending->dump->options->page_sink;

	atomic_fetch_add(&sending->sent_bytes, bytes);
	return sink->ops->pages(sink, PAGE_SPACE_SHMEM, sending->id, offset, data, bytes);
}

static int send_piece(void *context, const struct page_range *piece, const char *data)
{
	struct sending *sending = context;

	return sending->tracked
		       ? shmem_tracker_send(sending->tracked, piece->from, data, piece->bytes, send_pages, sending)
		       : send_pages(sending, piece->from, data, piece->bytes);
}

static int fail_sending(struct dump *dump, int error, bool reading)
{
	return reading ? fail_errno(&dump->failure, error, "shmem-read", NULL, NULL, "cannot read shared memory")
		       : page_send_failed(dump, error);
}

/* A sink that wants order gets each entry right before its pages. The last page may end beyond the file. */
static int send_in_order(struct sending *sending, int fd, const struct range_list *list)
{
	_cleanup_free_ char *buffer = xcalloc(1, PIECE_BYTES);
	struct dump *dump = sending->dump;
	struct page_sink *sink = dump->options->page_sink;
	int error = 0;

	for (size_t i = 0; i < list->count && !error; i++) {
		const struct page_range *range = &list->items[i];
		if (sink->ops->keeps_pagemap)
			error = sink->ops->entry(sink, PAGE_SPACE_SHMEM, sending->id, range->from,
						 range->bytes / PAGE_BYTES, PAGEMAP_PRESENT);
		for (uint64_t done = 0; done < range->bytes && !error; done += PIECE_BYTES) {
			uint64_t left = range->bytes - done, bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
			error = page_copy_read(fd, buffer, range->from + done, bytes);
			if (error < 0)
				return fail_sending(dump, error, true);
			error = send_pages(sending, range->from + done, buffer, bytes);
		}
	}
	return error ? fail_sending(dump, error, false) : 0;
}

static int send_in_threads(struct sending *sending, int fd, const struct range_list *list)
{
	struct page_sink *sink = sending->dump->options->page_sink;
	bool taking = true;
	int error = 0;

	for (size_t i = 0; sink->ops->keeps_pagemap && i < list->count && !error; i++)
		error = sink->ops->entry(sink, PAGE_SPACE_SHMEM, sending->id, list->items[i].from,
					 list->items[i].bytes / PAGE_BYTES, PAGEMAP_PRESENT);
	if (!error)
		error = page_feed(fd, list->items, list->count, send_piece, sending, &taking);
	return error ? fail_sending(sending->dump, error, !taking) : 0;
}

static int send_to_sink(struct sending *sending, int fd, const struct range_list *list)
{
	struct dump *dump = sending->dump;
	struct page_sink *sink = dump->options->page_sink;
	uint32_t pages_id = ++dump->last_pages_id;
	int error = sink->ops->open(sink, &dump->failure, PAGE_SPACE_SHMEM, sending->id, pages_id);

	if (error < 0)
		return error;
	error = sink->ops->ordered ? send_in_order(sending, fd, list) : send_in_threads(sending, fd, list);
	int closed = sink->ops->close(sink, PAGE_SPACE_SHMEM, sending->id);
	if (closed && !error)
		error = fail_sending(dump, closed, false);
	return error || sink->ops->keeps_pagemap ? error : write_pagemap(dump, list, sending->id, pages_id);
}

int shmem_pages_write(struct dump *dump, int fd, uint64_t size_bytes, uint32_t id, struct tracked_shmem *tracked)
{
	struct sending sending = {.dump = dump, .id = id, .tracked = tracked};
	struct range_list list = {};
	int error = find_data(fd, size_bytes, &list);

	if (error < 0)
		fail_errno(&dump->failure, error, "shmem-read", NULL, NULL, "cannot find the data of shared memory");
	if (!error)
		error = dump->options->page_sink ? send_to_sink(&sending, fd, &list) : write_files(dump, fd, &list, id);
	uint64_t written = dump->options->page_sink ? atomic_load(&sending.sent_bytes) : list.total_bytes;
	dump->stats.shpages_scanned += list.total_bytes / PAGE_BYTES;
	dump->stats.shpages_written += written / PAGE_BYTES;
	free(list.items);
	return error;
}

/* ---- restore ---- */

static int compare_sources(const void *left, const void *right)
{
	const struct page_place *a = left, *b = right;

	if (a->source != b->source)
		return a->source < b->source ? -1 : 1;
	return a->address < b->address ? -1 : a->address > b->address;
}

/* A file of huge pages cannot be written to, only mapped. */
static int copy_to_mapping(int pages, int fd, uint64_t size, const struct range_list *list)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int error = 0;

	if (memory == MAP_FAILED)
		return -errno;
	for (size_t i = 0; i < list->count && !error; i++)
		error = pread_full(pages, memory + list->items[i].to, list->items[i].bytes, list->items[i].from);
	munmap(memory, size);
	return error;
}

/* Copies the pages at the begin of @places that are of one source. Returns how many places, or a failure. */
static ssize_t read_source(struct restore *restore, int fd, uint64_t size, const struct page_place *places,
			   size_t count, bool is_hugetlb)
{
	struct range_list list = {};
	bool writing = false;
	int pages, error = page_chain_open(restore->page_chain, places[0].source, &pages);

	if (error < 0)
		return error;
	for (; list.count < count && places[list.count].source == places[0].source; list.count++) {
		const struct page_place *place = &places[list.count];
		ARRAY_GROW(list.items, list.count, list.capacity);
		list.items[list.count] =
			(struct page_range){place->first_page * PAGE_BYTES, place->address, place->pages * PAGE_BYTES};
	}
	error = is_hugetlb ? copy_to_mapping(pages, fd, size, &list)
			   : page_copy(pages, fd, size, list.items, list.count, &writing);
	free(list.items);
	if (error < 0)
		return fail_errno(&restore->failure, error, writing ? "shmem-write" : "image-read", NULL,
				  writing && error == -ENOMEM ? "free memory" : NULL,
				  writing ? "cannot fill shared memory" : "cannot read memory pages");
	page_chain_drop_fetched(restore->page_chain, places[0].source);
	return list.count;
}

static int read_places(struct restore *restore, int fd, uint64_t size, const struct page_places *places,
		       bool is_hugetlb)
{
	_cleanup_free_ struct page_place *sorted = xcalloc(places->count + 1, sizeof(*sorted));

	if (places->count)
		memcpy(sorted, places->items, places->count * sizeof(*sorted));
	qsort(sorted, places->count, sizeof(*sorted), compare_sources);
	for (size_t done = 0; done < places->count;) {
		ssize_t count = read_source(restore, fd, size, &sorted[done], places->count - done, is_hugetlb);
		if (count < 0)
			return count;
		done += count;
	}
	return 0;
}

int shmem_pages_read(struct restore *restore, int fd, uint64_t size_bytes, uint32_t id, bool is_hugetlb)
{
	const struct page_places *places;
	char name[64];
	int error = page_chain_read(restore->page_chain, IMAGE_SHMEM_PAGEMAP, id, round_up(size_bytes), &places);

	image_name(IMAGE_SHMEM_PAGEMAP, id, name, sizeof(name));
	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, EPROTO, "image-pagemap", name, "copy the whole images directory",
			    "the file is missing");
	if (error < 0)
		return error;
	restore_expect_pages(restore, places->own_pages);
	error = read_places(restore, fd, size_bytes, places, is_hugetlb);
	if (error < 0)
		return fail_in(&restore->failure, "%s", name);
	restore_count_pages(restore, &(struct restore_page_counts){.restored = places->own_pages});
	return 0;
}
