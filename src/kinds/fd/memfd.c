/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors of memfds. A memfd is a file without a name, so other open file descriptions of it come from opening
 * /proc/PID/fd/N; restore makes all of them so, from the one that criu holds (kinds/mem/shmem.c). Several memfds may
 * have the same name, and it says nothing.
 */
#include "kinds/fd/memfd.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/fd.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/held.h"
#include "kinds/mem/shmem.h"

static bool memfd_match(const struct target_fd *target)
{
	struct statfs filesystem;

	/* A deleted file of a disk may be called so too. */
	return S_ISREG(target->stat.st_mode) && !target->stat.st_nlink &&
	       (!strncmp(target->link, "/memfd:", strlen("/memfd:")) || !strcmp(target->link, "/dev/zero (deleted)")) &&
	       !fstatfs(target->fd, &filesystem) &&
	       (filesystem.f_type == TMPFS_MAGIC || filesystem.f_type == HUGETLBFS_MAGIC);
}

static int memfd_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	MemfdFileEntry *memfd = arena_message(&dump->arena, MemfdFileEntry, memfd_file_entry);
	int readable = held_open(target->fd, O_RDONLY);

	if (readable < 0)
		return fail_errno(&dump->failure, readable, "memfd-open", NULL, NULL, "cannot open it for reading");
	int error = shmem_dump_inode(dump, readable, &target->stat, target->link, &memfd->inode_id);
	close(readable);
	memfd->id = target->file->id;
	memfd->flags = target->flags;
	memfd->pos = target->position;
	memfd->fown = target->fown;
	entry->memfd = memfd;
	return error;
}

static int memfd_dump_finish(struct dump *dump)
{
	return shmem_dump_finish(dump);
}

static void memfd_dump_release(struct dump *dump, bool tree_is_gone)
{
	shmem_dump_release(dump);
}

/* Every file must have its inode. */
static int memfd_prepare(struct restore *restore)
{
	int error = shmem_prepare(restore);

	for (size_t i = 0; i < restore->file_count && !error; i++) {
		const FileEntry *entry = restore->files[i]->entry;
		if (entry->type == FD_TYPES__MEMFD &&
		    (!entry->memfd || shmem_find(restore, entry->memfd->inode_id) < 0))
			error = fail(&restore->failure, EPROTO, "image-memfd", "files.img", NULL,
				     "the memory of memfd %u is not in memfd.img", entry->id);
	}
	return error;
}

static int open_memory(struct restore *restore, const MemfdFileEntry *entry, int flags, int *ret_fd)
{
	int fd = held_open(shmem_find(restore, entry->inode_id), flags);

	if (fd < 0)
		return fail_errno(&restore->failure, fd, "memfd-open", NULL, NULL, "cannot open shared memory again");
	*ret_fd = fd;
	return 0;
}

static int memfd_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const MemfdFileEntry *entry = file->entry->memfd;
	_cleanup_fd_ int fd = -1;
	int error = open_memory(restore, entry, entry->flags & (O_ACCMODE | O_PATH | O_LARGEFILE | O_NOATIME), &fd);

	if (error < 0)
		return error;
	if (entry->pos && lseek(fd, entry->pos, SEEK_SET) < 0)
		return fail_errno(&restore->failure, errno, "memfd-position", NULL, NULL, "cannot set the position %lu",
				  entry->pos);
	if (!(entry->flags & O_PATH))
		error = status_flags_restore(restore, fd, entry->flags);
	if (error < 0)
		return error;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int memfd_open_mapping(struct restore *restore, uint32_t file_id, int flags, int *ret_fd)
{
	const struct restore_file *file = restore_find_file(restore, file_id);

	if (!file || file->entry->type != FD_TYPES__MEMFD || !file->entry->memfd)
		return fail(&restore->failure, EPROTO, "image-memfd", "files.img", NULL,
			    "file %u is missing or is no memfd", file_id);
	return open_memory(restore, file->entry->memfd, flags, ret_fd);
}

const struct fd_kind memfd_kind = {
	.name = "memfd",
	.type = FD_TYPES__MEMFD,
	.match = memfd_match,
	.dump = memfd_dump,
	.dump_finish = memfd_dump_finish,
	.dump_release = memfd_dump_release,
	.prepare = memfd_prepare,
	.open = memfd_open,
	.before_resume = shmem_seal,
};
