/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inodes of unnamed shared memory.
 *
 * The kernel makes a shared anonymous mapping by the same means as a memfd, but without a descriptor; its name is
 * "/dev/zero". The images know both as memfds; a "/dev/zero" has the seal that every file without sealing has.
 *
 * Dump: the tree is frozen, so an inode's pages are written when the first mapping or descriptor of it is found.
 * Restore: criu itself makes all inodes and fills them before the first process exists; all tasks inherit the
 * descriptors (kinds/fd/held.h) and open them again. So no task waits for another, content is complete before anybody
 * maps it, and a restore that fails leaves nothing. Seals come last, when all mappings exist: F_SEAL_WRITE and
 * F_SEAL_FUTURE_WRITE would be in the way of those that are older than the seal.
 */
#include "kinds/mem/shmem.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/held.h"
#include "kinds/fd/memfd.h"
#include "kinds/mem/shmem_pages.h"
#include "kinds/mem/shmem_track.h"

#include "memfd.pb-c.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U
#endif

#define MEMFD_PREFIX "/memfd:"
#define DELETED_SUFFIX " (deleted)"
#define ANONYMOUS_NAME "/dev/zero"

/* ---- dump ---- */

struct dumped_inode {
	struct {
		uint64_t device, inode;
	} key;
	MemfdInodeEntry entry;
	uint32_t mapping_file_id; /* 0: no mapping has asked for it */
	UT_hash_handle hh;
};

struct shmem_dump {
	struct dumped_inode *inodes; /* in the order in which they were found */
};

static struct shmem_dump *state_of_dump(struct dump *dump)
{
	struct shmem_dump **state = (struct shmem_dump **)dump_kind_state(dump, &memfd_kind);

	if (!*state)
		*state = arena_alloc(&dump->arena, sizeof(**state));
	return *state;
}

/* "/memfd:NAME (deleted)" is NAME; the name itself may end in the suffix. */
static size_t name_of_link(const char *link, const char **ret_name)
{
	*ret_name = strncmp(link, MEMFD_PREFIX, strlen(MEMFD_PREFIX)) ? link : link + strlen(MEMFD_PREFIX);
	size_t length = strlen(*ret_name), suffix = strlen(DELETED_SUFFIX);

	return length >= suffix && !strcmp(*ret_name + length - suffix, DELETED_SUFFIX) ? length - suffix : length;
}

char *shmem_memfd_name(const char *link)
{
	const char *name;
	size_t length = name_of_link(link, &name);

	if (name == link)
		return NULL;
	char *copy = xcalloc(1, length + 1);
	return memcpy(copy, name, length);
}

static int describe(struct dump *dump, int fd, const struct stat *stat, const char *link, MemfdInodeEntry *entry)
{
	struct statfs filesystem;
	const char *name;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || fstatfs(fd, &filesystem) < 0)
		return fail_errno(&dump->failure, errno, "memfd-seals", NULL, NULL, "cannot read its seals");
	if (filesystem.f_type == HUGETLBFS_MAGIC)
		return fail(&dump->failure, EOPNOTSUPP, "memfd-hugetlb", NULL, "use transparent huge pages",
			    "a memfd of huge pages (MFD_HUGETLB) cannot be checkpointed");
	memfd_inode_entry__init(entry);
	size_t length = name_of_link(link, &name);
	entry->name = arena_alloc(&dump->arena, length + 1);
	memcpy(entry->name, name, length);
	entry->uid = stat->st_uid;
	entry->gid = stat->st_gid;
	entry->size = stat->st_size;
	entry->seals = seals;
	entry->has_mode = true;
	entry->mode = stat->st_mode;
	entry->inode_id = entry->shmid = ++dump->next_object_id;
	return 0;
}

/* @fd may be open for writing only. */
static int write_pages(struct dump *dump, int fd, const struct stat *stat, MemfdInodeEntry *entry)
{
	struct tracked_shmem *tracked = NULL;
	int readable = dump->only_explain ? -1 : held_open(fd, O_RDONLY);

	if (dump->only_explain)
		return 0;
	if (readable < 0)
		return fail_errno(&dump->failure, readable, "shmem-read", NULL, NULL, "cannot open it for reading");
	if (dump->options->shared_memory) {
		tracked = shmem_tracker_find(dump->options->shared_memory, stat);
		entry->shmid = tracked->id;
	}
	int error = shmem_pages_write(dump, readable, entry->size, entry->shmid, tracked);
	close(readable);
	return error;
}

static int find_inode(struct dump *dump, int fd, const struct stat *stat, const char *link,
		      struct dumped_inode **ret_inode)
{
	struct shmem_dump *state = state_of_dump(dump);
	struct dumped_inode *found, *wanted = arena_alloc(&dump->arena, sizeof(*wanted));

	wanted->key.device = stat->st_dev;
	wanted->key.inode = stat->st_ino;
	HASH_FIND(hh, state->inodes, &wanted->key, sizeof(wanted->key), found);
	if (!found) {
		int error = describe(dump, fd, stat, link, &wanted->entry);
		if (!error)
			error = write_pages(dump, fd, stat, &wanted->entry);
		if (error < 0)
			return error;
		HASH_ADD(hh, state->inodes, key, sizeof(wanted->key), wanted);
		found = wanted;
	}
	*ret_inode = found;
	return 0;
}

int shmem_dump_inode(struct dump *dump, int fd, const struct stat *stat, const char *link, uint32_t *ret_inode_id)
{
	struct dumped_inode *inode;
	int error = find_inode(dump, fd, stat, link, &inode);

	if (!error)
		*ret_inode_id = inode->entry.inode_id;
	return error;
}

int shmem_dump_mapping(struct dump *dump, struct dump_task *task, int fd, const struct stat *stat, const char *link,
		       uint32_t *ret_file_id)
{
	struct dumped_inode *inode;
	int error = find_inode(dump, fd, stat, link, &inode);

	if (error < 0)
		return error;
	if (!inode->mapping_file_id) {
		struct dump_file *file = dump_file_add(dump, &memfd_kind);
		MemfdFileEntry *entry = arena_message(&dump->arena, MemfdFileEntry, memfd_file_entry);
		file->task = task;
		file->stat = *stat;
		file->entry->type = FD_TYPES__MEMFD;
		file->entry->memfd = entry;
		entry->id = file->id;
		entry->fown = arena_message(&dump->arena, FownEntry, fown_entry);
		entry->inode_id = inode->entry.inode_id;
		inode->mapping_file_id = file->id;
	}
	*ret_file_id = inode->mapping_file_id;
	return 0;
}

int shmem_dump_finish(struct dump *dump)
{
	struct shmem_dump *state = state_of_dump(dump);
	struct image *image;

	if (!state->inodes || dump->only_explain)
		return 0;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_MEMFD_INODE, 0, &image);
	if (error < 0)
		return error;
	for (const struct dumped_inode *inode = state->inodes; inode; inode = inode->hh.next)
		image_write(image, &inode->entry.base);
	return image_close(&image);
}

void shmem_dump_release(struct dump *dump)
{
	HASH_CLEAR(hh, state_of_dump(dump)->inodes);
}

/* ---- restore ---- */

struct restored_inode {
	uint64_t id;
	int held;
	uint32_t seals_to_add;
	const char *name;
	UT_hash_handle hh;
};

struct shmem_restore {
	struct restored_inode *inodes;
};

static struct shmem_restore *state_of_restore(struct restore *restore)
{
	struct shmem_restore **state = (struct shmem_restore **)restore_kind_state(restore, &memfd_kind);

	if (!*state)
		*state = arena_alloc(&restore->arena, sizeof(**state));
	return *state;
}

/* Shared anonymous memory under its own name. Returns a descriptor or -errno. */
static int make_anonymous(uint64_t size)
{
	char path[96];
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (uint64_t)memory, (uint64_t)memory + size);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int error = errno;
	munmap(memory, size);
	return fd < 0 ? -error : fd;
}

/* Returns a descriptor or -errno. */
static int make_memfd(const MemfdInodeEntry *entry)
{
	unsigned flags = MFD_CLOEXEC | (entry->seals == F_SEAL_SEAL ? 0 : MFD_ALLOW_SEALING);
	int fd;

	if (entry->has_hugetlb_flag)
		flags |= MFD_HUGETLB | entry->hugetlb_flag;
	/* Kernels with vm.memfd_noexec want to be told; older ones do not know the flag. */
	fd = memfd_create(entry->name, flags | MFD_EXEC);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(entry->name, flags);
	return fd < 0 ? -errno : fd;
}

static bool is_anonymous(const MemfdInodeEntry *entry)
{
	return !strcmp(entry->name, ANONYMOUS_NAME) && entry->seals == F_SEAL_SEAL && entry->size &&
	       !entry->has_hugetlb_flag && entry->size % 4096 == 0;
}

static int make_inode(struct restore *restore, const MemfdInodeEntry *entry, int *ret_fd)
{
	int made = is_anonymous(entry) ? make_anonymous(entry->size) : -1;
	if (made < 0)
		made = make_memfd(entry);
	if (made < 0)
		return fail_errno(&restore->failure, made, "memfd-create", NULL, NULL, "cannot make shared memory");
	_cleanup_fd_ int fd = made;

	if (entry->size > INT64_MAX || ftruncate(fd, entry->size) < 0)
		return fail_errno(&restore->failure, entry->size > INT64_MAX ? EFBIG : errno, "memfd-size", NULL, NULL,
				  "cannot give shared memory %lu bytes", entry->size);
	int error = shmem_pages_read(restore, fd, entry->size, entry->shmid, entry->has_hugetlb_flag);
	if (error < 0)
		return error;
	if (fchown(fd, entry->uid, entry->gid) < 0 || (entry->has_mode && fchmod(fd, entry->mode & 07777) < 0))
		return fail_errno(&restore->failure, errno, "memfd-owner", NULL, NULL,
				  "cannot set owner and mode of shared memory");
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int restore_inode(struct restore *restore, const MemfdInodeEntry *entry)
{
	struct shmem_restore *state = state_of_restore(restore);
	struct restored_inode *inode = arena_alloc(&restore->arena, sizeof(*inode)), *other;
	int fd = -1, error = make_inode(restore, entry, &fd);

	if (!error)
		error = held_keep(restore, &fd);
	if (error < 0) {
		close_fd_pointer(&fd);
		return fail_in(&restore->failure, "memfd.img: \"%s\"", entry->name);
	}
	inode->id = entry->inode_id;
	inode->held = fd;
	inode->name = arena_strdup(&restore->arena, entry->name);
	inode->seals_to_add = entry->seals == F_SEAL_SEAL ? 0 : entry->seals;
	HASH_FIND(hh, state->inodes, &inode->id, sizeof(inode->id), other);
	if (other) {
		close(fd);
		return fail(&restore->failure, EPROTO, "image-memfd", "memfd.img", NULL, "inode %lu occurs twice",
			    inode->id);
	}
	HASH_ADD(hh, state->inodes, id, sizeof(inode->id), inode);
	return 0;
}

int shmem_prepare(struct restore *restore)
{
	ProtobufCMessage *message;
	struct image *image;
	int got, error = restore_image_open(restore, IMAGE_MEMFD_INODE, 0, &image);

	if (error < 0)
		return error == -ENOENT ? 0 : error;
	while ((got = image_read(image, &message)) > 0) {
		error = restore_inode(restore, (const MemfdInodeEntry *)message);
		image_message_free(message);
		if (error < 0)
			break;
	}
	int closed = image_close(&image);
	return error ? error : got < 0 ? got : closed;
}

int shmem_find(struct restore *restore, uint32_t inode_id)
{
	const struct restored_inode *inode;
	uint64_t id = inode_id;

	HASH_FIND(hh, state_of_restore(restore)->inodes, &id, sizeof(id), inode);
	return inode ? inode->held : -1;
}

int shmem_seal(struct restore *restore)
{
	struct shmem_restore *state = state_of_restore(restore);

	for (struct restored_inode *inode = state->inodes; inode; inode = inode->hh.next) {
		if (inode->seals_to_add && fcntl(inode->held, F_ADD_SEALS, inode->seals_to_add) < 0)
			return fail_errno(&restore->failure, errno, "memfd-seals", NULL, NULL,
					  "memfd \"%s\": cannot add the seals 0x%x", inode->name, inode->seals_to_add);
		close_fd_pointer(&inode->held);
		inode->held = -1;
	}
	HASH_CLEAR(hh, state->inodes);
	return 0;
}
