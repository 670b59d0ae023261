/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/mem/shmem_track.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>

#include "base/fd.h"
#include "base/hash.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/shmem.h"
#include "kinds/mem/shmem_pages.h"

extern const struct mem_kind shared_mapping_kind;

enum {
	PAGE_BYTES = 4096,
	FIRST_ID = 1 << 30, /* above all ids that a single dump gives */
};

struct page_hash {
	XXH128_hash_t value;
};

struct shmem_tracker {
	struct tracked_shmem *shmems;
	uint32_t count;
};

struct shmem_tracker *shmem_tracker_new(void)
{
	return xcalloc(1, sizeof(struct shmem_tracker));
}

static void close_found(struct tracked_shmem *shmem)
{
	close_fd_pointer(&shmem->fd);
	shmem->fd = -1;
}

void shmem_tracker_free(struct shmem_tracker *tracker)
{
	struct tracked_shmem *shmem, *next;

	if (!tracker)
		return;
	HASH_ITER (hh, tracker->shmems, shmem, next) {
		HASH_DEL(tracker->shmems, shmem);
		close_found(shmem);
		free(shmem->hashes);
		free(shmem->name);
		free(shmem);
	}
	free(tracker);
}

const struct tracked_shmem *shmem_tracker_first(const struct shmem_tracker *tracker)
{
	return tracker->shmems;
}

struct tracked_shmem *shmem_tracker_find(struct shmem_tracker *tracker, const struct stat *stat)
{
	struct tracked_shmem *found, *wanted = xcalloc(1, sizeof(*wanted));

	wanted->key.device = stat->st_dev;
	wanted->key.inode = stat->st_ino;
	HASH_FIND(hh, tracker->shmems, &wanted->key, sizeof(wanted->key), found);
	if (found) {
		free(wanted);
	} else {
		found = wanted;
		found->fd = -1;
		found->id = FIRST_ID + tracker->count++;
		HASH_ADD(hh, tracker->shmems, key, sizeof(found->key), found);
	}
	if (found->bytes != (uint64_t)stat->st_size || !found->hashes) {
		free(found->hashes);
		found->bytes = stat->st_size;
		/* Of a sparse file only the hashes that are set take memory. */
		found->hashes = xcalloc(found->bytes / PAGE_BYTES + 1, sizeof(*found->hashes));
	}
	return found;
}

/* Notes the page, and says whether the other side had another one. */
static bool has_changed(struct tracked_shmem *shmem, uint64_t offset, const char *page)
{
	struct page_hash *known = &shmem->hashes[offset / PAGE_BYTES];
	XXH128_hash_t now = XXH3_128bits(page, PAGE_BYTES);

	if (XXH128_isEqual(now, known->value))
		return false;
	known->value = now;
	return true;
}

int shmem_tracker_send(struct tracked_shmem *shmem, uint64_t offset, const char *data, size_t bytes,
		       int (*send)(void *context, uint64_t offset, const char *data, size_t bytes), void *context)
{
	size_t first = 0;
	int error = 0;

	for (size_t at = 0; at < bytes && !error; at += PAGE_BYTES) {
		if (has_changed(shmem, offset + at, data + at))
			continue;
		error = at > first ? send(context, offset + first, data + first, at - first) : 0;
		first = at + PAGE_BYTES;
	}
	return error || first >= bytes ? error : send(context, offset + first, data + first, bytes - first);
}

/* ---- in a pre-dump ---- */

/* It may have gone since the list of mappings was read: then the last dump finds what took its place. */
static void find_one(struct dump *dump, const struct dump_task *task, const struct mapping *mapping)
{
	struct stat stat;
	char path[64];

	snprintf(path, sizeof(path), "map_files/%lx-%lx", mapping->start, mapping->end);
	_cleanup_fd_ int fd = openat(task->proc_dirfd, path, O_RDONLY | O_CLOEXEC);
	int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS);
	if (seals < 0 || fstat(fd, &stat) < 0)
		return;
	struct tracked_shmem *shmem = shmem_tracker_find(dump->options->shared_memory, &stat);
	if (shmem->fd >= 0)
		return;
	if (!shmem->name)
		shmem->name = shmem_memfd_name(mapping->name);
	shmem->sealable = seals != F_SEAL_SEAL;
	shmem->fd = TAKE_FD(fd);
}

void shmem_pre_dump_find(struct dump *dump)
{
	if (!dump->options->shared_memory)
		return;
	for (size_t t = 0; t < dump->task_count; t++) {
		const struct dump_task *task = dump->tasks[t];
		for (size_t i = 0; task->memory && i < task->memory->mappings.count; i++)
			if (mem_kind_of_mapping(&task->memory->mappings.items[i]) == &shared_mapping_kind)
				find_one(dump, task, &task->memory->mappings.items[i]);
	}
}

int shmem_pre_dump_write(struct dump *dump)
{
	int error = 0;

	if (!dump->options->shared_memory)
		return 0;
	for (struct tracked_shmem *shmem = dump->options->shared_memory->shmems; shmem; shmem = shmem->hh.next) {
		if (shmem->fd >= 0 && !error)
			error = shmem_pages_write(dump, shmem->fd, shmem->bytes, shmem->id, shmem);
		close_found(shmem);
	}
	return error;
}
