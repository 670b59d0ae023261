/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tmpfs tells its holes (SEEK_DATA), so a sparse terabyte costs what is in it. Pages that exist but are zero (a hole
 * that was read through a mapping) are in the pagemap, and are holes in the pages file and again after the restore.
 */
#include "kinds/mem/shmem_pages.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "image/image.h"
#include "kinds/mem/page_copy.h"
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

/* The last page of shared memory may end beyond the file. */
static int send_range(struct dump *dump, int fd, const struct page_range *range, uint32_t id, char *buffer)
{
	struct page_sink *sink = dump->options->page_sink;
	int error = 0;

	if (sink->ops->keeps_pagemap)
		error = sink->ops->entry(sink, PAGE_SPACE_SHMEM, id, range->from, range->bytes / PAGE_BYTES,
					 PAGEMAP_PRESENT);
	for (uint64_t done = 0; done < range->bytes && !error;) {
		uint64_t left = range->bytes - done, bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
		error = page_copy_read(fd, buffer, range->from + done, bytes);
		if (error < 0)
			return fail_errno(&dump->failure, error, "shmem-read", NULL, NULL, "cannot read shared memory");
		error = sink->ops->pages(sink, PAGE_SPACE_SHMEM, id, range->from + done, buffer, bytes);
		done += bytes;
	}
	return error ? fail_errno(&dump->failure, error, "page-sink", sink->name, NULL, "cannot hand memory pages over")
		     : 0;
}

/* Shared memory is found one after another, so one thread feeds the sink, whether it wants order or not. */
static int send_to_sink(struct dump *dump, int fd, const struct range_list *list, uint32_t id)
{
	_cleanup_free_ char *buffer = xcalloc(1, PIECE_BYTES);
	struct page_sink *sink = dump->options->page_sink;
	int error = sink->ops->open(sink, &dump->failure, PAGE_SPACE_SHMEM, id);

	if (error < 0)
		return error;
	for (size_t i = 0; i < list->count && !error; i++)
		error = send_range(dump, fd, &list->items[i], id, buffer);
	int closed = sink->ops->close(sink, PAGE_SPACE_SHMEM, id);
	if (closed && !error)
		error = fail_errno(&dump->failure, closed, "page-sink", sink->name, NULL,
				   "cannot hand memory pages over");
	return error || sink->ops->keeps_pagemap ? error : write_pagemap(dump, list, id, ++dump->last_pages_id);
}

int shmem_pages_write(struct dump *dump, int fd, uint64_t size_bytes, uint32_t id)
{
	struct range_list list = {};
	int error = find_data(fd, size_bytes, &list);

	if (error < 0)
		fail_errno(&dump->failure, error, "shmem-read", NULL, NULL, "cannot find the data of shared memory");
	if (!error)
		error = dump->options->page_sink ? send_to_sink(dump, fd, &list, id) : write_files(dump, fd, &list, id);
	dump->stats.shpages_scanned += list.total_bytes / PAGE_BYTES;
	dump->stats.shpages_written += list.total_bytes / PAGE_BYTES;
	free(list.items);
	return error;
}

/* ---- restore ---- */

static int fail_pagemap(struct restore *restore, uint32_t id, const char *cause)
{
	char name[64];

	return fail(&restore->failure, EPROTO, "image-pagemap", image_name(IMAGE_SHMEM_PAGEMAP, id, name, sizeof(name)),
		    NULL, "%s", cause);
}

static int add_entry(struct restore *restore, const PagemapEntry *entry, uint64_t size, uint32_t id,
		     struct range_list *list)
{
	uint64_t pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages;
	uint64_t limit = round_up(size);

	if ((entry->has_flags && (entry->flags & PAGEMAP_IN_PARENT)) || (entry->has_in_parent && entry->in_parent))
		return fail(&restore->failure, EOPNOTSUPP, "image-parent", NULL, "dump without --prev-images-dir",
			    "pagemap-shmem-%u.img: pages lie in older images, which this release cannot read", id);
	if (entry->has_flags && !(entry->flags & PAGEMAP_PRESENT))
		return 0;
	if (entry->vaddr % PAGE_BYTES || entry->vaddr > limit || pages > (limit - entry->vaddr) / PAGE_BYTES)
		return fail_pagemap(restore, id, "an entry lies outside the memory");
	if (list->total_bytes + pages * PAGE_BYTES < list->total_bytes)
		return fail_pagemap(restore, id, "it has too many pages");
	ARRAY_GROW(list->items, list->count, list->capacity);
	list->items[list->count++] = (struct page_range){list->total_bytes, entry->vaddr, pages * PAGE_BYTES};
	list->total_bytes += pages * PAGE_BYTES;
	return 0;
}

static int read_entries(struct restore *restore, struct image *image, uint64_t size, uint32_t id,
			struct range_list *list, uint32_t *ret_pages_id)
{
	ProtobufCMessage *message = NULL;
	int error = 0, got = image_read(image, &message);

	if (got < 0)
		return got;
	if (!got || message->descriptor != &pagemap_head__descriptor) {
		image_message_free(message);
		return fail_pagemap(restore, id, "it has no head");
	}
	*ret_pages_id = ((PagemapHead *)message)->pages_id;
	image_message_free(message);
	while (!error && (got = image_read(image, &message)) > 0) {
		error = message->descriptor == &pagemap_entry__descriptor
				? add_entry(restore, (PagemapEntry *)message, size, id, list)
				: fail_pagemap(restore, id, "it holds other messages");
		image_message_free(message);
	}
	return error ? error : got;
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

static int read_data(struct restore *restore, int fd, uint64_t size, const struct range_list *list, uint32_t pages_id,
		     bool is_hugetlb)
{
	struct stat stat;
	bool writing = false;
	char name[64];

	image_name(IMAGE_PAGES, pages_id, name, sizeof(name));
	_cleanup_fd_ int pages = openat(restore->images_dirfd, name, O_RDONLY | O_CLOEXEC);
	if (pages < 0 || fstat(pages, &stat) < 0)
		return fail_errno(&restore->failure, errno, "image-missing", name, "copy the images directory again",
				  "cannot open it");
	if (list->total_bytes > (uint64_t)stat.st_size)
		return fail(&restore->failure, EPROTO, "image-truncated", name, "copy the images directory again",
			    "it has %ld bytes instead of %lu", stat.st_size, list->total_bytes);
	int error = is_hugetlb ? copy_to_mapping(pages, fd, size, list)
			       : page_copy(pages, fd, size, list->items, list->count, &writing);
	if (error < 0)
		return fail_errno(&restore->failure, error, writing ? "shmem-write" : "image-read", name,
				  writing && error == -ENOMEM ? "free memory" : NULL,
				  writing ? "cannot fill shared memory" : "cannot read memory pages");
	return 0;
}

int shmem_pages_read(struct restore *restore, int fd, uint64_t size_bytes, uint32_t id, bool is_hugetlb)
{
	struct range_list list = {};
	uint32_t pages_id = 0;
	struct image *image;
	int error = image_open(restore->images_dirfd, &restore->failure, IMAGE_SHMEM_PAGEMAP, id, &image);

	if (error == -ENOENT)
		return fail_pagemap(restore, id, "the file is missing");
	if (error < 0)
		return error;
	error = read_entries(restore, image, size_bytes, id, &list, &pages_id);
	int closed = image_close(&image);
	if (!error)
		error = closed;
	restore_expect_pages(restore, list.total_bytes / PAGE_BYTES);
	if (!error && list.total_bytes)
		error = read_data(restore, fd, size_bytes, &list, pages_id, is_hugetlb);
	if (!error)
		restore_count_pages(restore, &(struct restore_page_counts){.restored = list.total_bytes / PAGE_BYTES});
	free(list.items);
	return error;
}
