/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapped files, private and shared. The open file is only a name here: /proc/PID/map_files gives a descriptor for
 * it even when the path is gone. Thousands of mappings of a few libraries must not cost thousands of look-ups, so
 * the last answers are kept per dump, by device, inode and access.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <uthash.h>

#include "base/fd.h"
#include "kinds/fd/regular.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/memory.h"

struct known_file {
	struct {
		uint64_t device, inode;
		uint64_t access;
	} key;
	char *name;
	uint32_t id;
	UT_hash_handle hh;
};

struct known_files {
	struct known_file *table;
};

static bool file_match(const struct mapping *mapping)
{
	return true;
}

/* A shared mapping that may become writable needs a descriptor that is open for writing. */
static int access_of(const struct mapping *mapping)
{
	return mapping->shared && (mapping->flags & MAPPING_MAY_WRITE) ? O_RDWR : O_RDONLY;
}

static int file_id(struct dump *dump, struct dump_task *task, const struct mapping *mapping, uint32_t *ret_id)
{
	struct known_files *known = dump->mapped_files;
	struct known_file *file, *wanted;
	char path[64];

	if (!known)
		known = dump->mapped_files = arena_alloc(&dump->arena, sizeof(*known));
	wanted = arena_alloc(&dump->arena, sizeof(*wanted));
	wanted->key.device = (uint64_t)mapping->dev_major << 32 | mapping->dev_minor;
	wanted->key.inode = mapping->inode;
	wanted->key.access = access_of(mapping);
	HASH_FIND(hh, known->table, &wanted->key, sizeof(wanted->key), file);
	if (file && !strcmp(file->name, mapping->name)) {
		*ret_id = file->id;
		return 0;
	}
	snprintf(path, sizeof(path), "map_files/%lx-%lx", mapping->start, mapping->end);
	_cleanup_fd_ int fd = openat(task->proc_dirfd, path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(&dump->failure, errno, "mapping-file", NULL,
				  "run criu as root or with CAP_CHECKPOINT_RESTORE",
				  "cannot open the mapped file \"%s\"", mapping->name);
	int error = regular_dump_fd(dump, task, fd, mapping->name, access_of(mapping), ret_id);
	if (error < 0)
		return error;
	if (!file) {
		wanted->name = arena_strdup(&dump->arena, mapping->name);
		wanted->id = *ret_id;
		HASH_ADD(hh, known->table, key, sizeof(wanted->key), wanted);
	}
	return 0;
}

void mapped_files_forget(struct dump *dump)
{
	struct known_files *known = dump->mapped_files;

	if (known)
		HASH_CLEAR(hh, known->table);
}

static int file_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	uint32_t id;
	int error = file_id(dump, task, mapping, &id);

	if (error < 0)
		return error;
	entry->shmid = id;
	entry->status = VMA_STATUS_REGULAR | (mapping->shared ? VMA_STATUS_FILE_SHARED : VMA_STATUS_FILE_PRIVATE);
	entry->flags |= mapping->shared ? MAP_SHARED : MAP_PRIVATE;
	entry->has_fdflags = true;
	entry->fdflags = access_of(mapping);
	return 0;
}

static bool file_match_entry(const VmaEntry *entry)
{
	return (entry->status & (VMA_STATUS_FILE_PRIVATE | VMA_STATUS_FILE_SHARED)) &&
	       !(entry->status & VMA_STATUS_MEMFD);
}

static int file_open(struct restore *restore, const VmaEntry *entry, int *ret_fd)
{
	int flags = entry->has_fdflags ? (int)(entry->fdflags & O_ACCMODE) : O_RDONLY;

	/* A private mapping needs no right to write, whatever the descriptor it came from could do. */
	if (entry->status & VMA_STATUS_FILE_PRIVATE)
		flags = O_RDONLY;
	return regular_open(restore, entry->shmid, flags, ret_fd);
}

const struct mem_kind file_mapping_kind = {
	.name = "mapped file",
	.match = file_match,
	.dump = file_dump,
	.has_private_pages = true,
	.match_entry = file_match_entry,
	.open = file_open,
};
