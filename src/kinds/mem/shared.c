/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory without a name in any file system: shared anonymous memory ("/dev/zero (deleted)") and memfds, mapped
 * shared or privately. The kernel keeps both as unnamed tmpfs files; the images say memfd for both.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "kinds/fd/memfd.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/shmem.h"

static bool shared_match(const struct mapping *mapping)
{
	return !strncmp(mapping->name, "/memfd:", strlen("/memfd:")) ||
	       (mapping->shared && !strncmp(mapping->name, "/dev/zero (deleted)", strlen("/dev/zero (deleted)")));
}

static int shared_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	bool writable = mapping->shared && (mapping->flags & MAPPING_MAY_WRITE);
	struct stat stat;
	uint32_t id;
	char path[64];

	snprintf(path, sizeof(path), "map_files/%lx-%lx", mapping->start, mapping->end);
	_cleanup_fd_ int fd = openat(task->proc_dirfd, path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &stat) < 0)
		return fail_errno(&dump->failure, errno, "mapping-shared", NULL,
				  "run criu as root or with CAP_CHECKPOINT_RESTORE", "cannot open shared memory \"%s\"",
				  mapping->name);
	int error = shmem_dump_mapping(dump, task, fd, &stat, mapping->name, &id);
	if (error < 0)
		return error;
	entry->shmid = id;
	entry->status = VMA_STATUS_REGULAR | VMA_STATUS_MEMFD |
			(mapping->shared ? VMA_STATUS_FILE_SHARED : VMA_STATUS_FILE_PRIVATE);
	entry->flags |= mapping->shared ? MAP_SHARED : MAP_PRIVATE;
	entry->has_fdflags = true;
	entry->fdflags = writable ? O_RDWR : O_RDONLY;
	return 0;
}

static bool shared_match_entry(const VmaEntry *entry)
{
	return entry->status & VMA_STATUS_MEMFD;
}

static int shared_open(struct restore *restore, const VmaEntry *entry, int *ret_fd)
{
	int flags = entry->has_fdflags ? (int)(entry->fdflags & O_ACCMODE) : O_RDWR;

	return memfd_open_mapping(restore, entry->shmid, flags, ret_fd);
}

const struct mem_kind shared_mapping_kind = {
	.name = "shared memory",
	.match = shared_match,
	.dump = shared_dump,
	.has_private_pages = true, /* of a private mapping of a memfd */
	.match_entry = shared_match_entry,
	.open = shared_open,
};
