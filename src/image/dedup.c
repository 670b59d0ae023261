/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a chain of images no longer needs is found by resolving the newest ones completely: any page of a file that no
 * place names is free to go. So nothing is lost if the chain cannot be read: then nothing is freed.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "image/page_chain.h"

enum { PAGE_BYTES = 4096 };

/* Reads every pagemap of the directory. */
static int read_all(struct page_chain *chain, int dirfd, struct page_places *used, struct failure *failure)
{
	_cleanup_dir_ DIR *directory = NULL;
	struct dirent *entry;
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;
	bool found = false;

	directory = fd < 0 ? NULL : fdopendir(fd);
	if (!directory)
		return fail_errno(failure, errno, "directory-open", "images directory", NULL, "cannot be read");
	while (!error && (entry = readdir(directory))) {
		const struct page_places *places;
		unsigned long id;
		bool shmem = sscanf(entry->d_name, "pagemap-shmem-%lu.img", &id) == 1;
		if (!shmem && sscanf(entry->d_name, "pagemap-%lu.img", &id) != 1)
			continue;
		found = true;
		error = page_chain_read(chain, shmem ? IMAGE_SHMEM_PAGEMAP : IMAGE_PAGEMAP, id, UINT64_MAX, &places);
		for (size_t i = 0; !error && i < places->count; i++) {
			ARRAY_GROW(used->items, used->count, used->capacity);
			used->items[used->count++] = places->items[i];
		}
	}
	if (!found)
		return fail(failure, ENOENT, "image-missing", "images directory", "name it with --images-dir",
			    "there are no images of memory in it");
	return error;
}

static int compare_pages(const void *left, const void *right)
{
	const struct page_place *a = left, *b = right;

	if (a->source != b->source)
		return a->source < b->source ? -1 : 1;
	return a->first_page < b->first_page ? -1 : a->first_page > b->first_page;
}

static int punch(int fd, uint64_t start_page, uint64_t end_page, uint64_t *bytes)
{
	uint64_t length = (end_page - start_page) * PAGE_BYTES;

	if (end_page <= start_page)
		return 0;
	*bytes += length;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start_page * PAGE_BYTES, length) < 0 ? -errno
													      : 0;
}

/* Frees what lies between the places of @source in @used, which begins with them; or all of it. */
static int punch_source(int fd, uint32_t source, const struct page_place *used, size_t count, bool all, uint64_t *bytes)
{
	struct stat stat;
	uint64_t at = 0;
	int error = fstat(fd, &stat) < 0 ? -errno : 0;

	for (size_t i = 0; !all && !error && i < count && used[i].source == source; i++) {
		error = punch(fd, at, used[i].first_page, bytes);
		if (used[i].first_page + used[i].pages > at)
			at = used[i].first_page + used[i].pages;
	}
	return error ? error : punch(fd, at, stat.st_size / PAGE_BYTES, bytes);
}

int images_dedup(int dirfd, bool all, struct failure *failure, uint64_t *ret_bytes)
{
	struct page_chain *chain = page_chain_new(dirfd, failure);
	struct page_places used = {};
	uint64_t bytes = 0;
	int error = read_all(chain, dirfd, &used, failure);
	size_t at = 0;

	qsort(used.items, used.count, used.items ? sizeof(*used.items) : 1, compare_pages);
	for (uint32_t source = 0; !error && source < page_chain_source_count(chain); source++) {
		while (at < used.count && used.items[at].source < source)
			at++;
		if (!all && !page_chain_is_parent(chain, source))
			continue;
		_cleanup_fd_ int fd = page_chain_reopen(chain, source);
		if (fd == -ENOENT)
			continue; /* a pagemap without pages */
		error = fd < 0 ? fd : punch_source(fd, source, &used.items[at], used.count - at, all, &bytes);
		if (error < 0)
			fail_errno(failure, error, "image-dedup", "pages image",
				   error == -EOPNOTSUPP ? "the file system cannot make holes" : NULL,
				   "cannot free its pages");
	}
	free(used.items);
	page_chain_free(chain);
	if (!error)
		*ret_bytes = bytes;
	return error;
}
