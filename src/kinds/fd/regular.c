/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that a path leads to: regular files, directories, symbolic links (O_PATH), files of procfs and sysfs, and
 * devices without a state of their own (null, zero, full, random, urandom …).
 *
 * Dump records the path, after a check that it leads to the open file (file_name.c); files without a name are kept
 * by remap.c. The same rows describe files that are mapped, programs and working directories, which are no
 * descriptors: one entry for each file and way of opening it, however many mappings there are.
 * Restore checks every file before the first process exists: a program or library must be the same (build id, or
 * size), a file that is open may have grown, but not shrunk below the position.
 */
#include "kinds/fd/regular.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/build_id.h"
#include "kinds/fd/file_name.h"
#include "kinds/fd/held.h"
#include "kinds/fd/remap.h"

#define MQUEUE_MAGIC 0x19800202
#ifndef SECRETMEM_MAGIC
#define SECRETMEM_MAGIC 0x5345434d
#endif

/* What open() takes from the recorded flags; the kernel shows more (__O_TMPFILE has no bit of its own). */
#define FLAGS_TO_OPEN                                                                                                 \
	(O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_DIRECT | O_LARGEFILE | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | \
	 O_PATH)
#define TMPFILE_BIT (O_TMPFILE & ~O_DIRECTORY)

/* ---- dump ---- */

/* A file outside the descriptor tables that has its entry already. */
struct known_file {
	struct {
		uint64_t device, inode, flags;
	} key;
	uint32_t id;
	const char *name;
	UT_hash_handle hh;
};

struct regular_dump {
	struct known_file *known;
	struct remap_dump *remaps;
};

static struct regular_dump *state_of_dump(struct dump *dump)
{
	struct regular_dump **state = (struct regular_dump **)dump_kind_state(dump, &regular_kind);

	if (!*state) {
		*state = arena_alloc(&dump->arena, sizeof(**state));
		(*state)->remaps = remap_dump_new(dump);
	}
	return *state;
}

/* Devices whose descriptors have no state but their flags. */
static bool is_stateless_device(const struct stat *stat)
{
	enum { MEMORY_DEVICES = 1, MISC_DEVICES = 10, MISC_RANDOM_GENERATOR = 183, MISC_LOOP_CONTROL = 237 };
	unsigned number = major(stat->st_rdev);

	return S_ISCHR(stat->st_mode) &&
	       (number == MEMORY_DEVICES || (number == MISC_DEVICES && (minor(stat->st_rdev) == MISC_RANDOM_GENERATOR ||
									minor(stat->st_rdev) == MISC_LOOP_CONTROL)));
}

static int check_device(struct dump *dump, const struct stat *stat, const char *name)
{
	if (is_stateless_device(stat))
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "fd-device", NULL, "its owner must close it before the dump",
		    "\"%s\" is a %s device (%u:%u), whose state cannot be read", name,
		    S_ISCHR(stat->st_mode) ? "character" : "block", major(stat->st_rdev), minor(stat->st_rdev));
}

static int find_name(struct dump *dump, const struct dump_task *task, int fd, int flags, const struct stat *stat,
		     const char *link, enum file_name_state *ret_state, char **ret_name)
{
	struct statfs filesystem;

	if (fstatfs(fd, &filesystem) < 0)
		return fail_errno(&dump->failure, errno, "fd-statfs", NULL, NULL, "cannot ask for its file system");
	switch (filesystem.f_type) {
	case PROC_SUPER_MAGIC:
		*ret_state = FILE_NAME_GOOD;
		*ret_name = arena_strdup(&dump->arena, link);
		return file_name_check_proc(dump, link);
	case MQUEUE_MAGIC:
		return fail(&dump->failure, EOPNOTSUPP, "fd-mqueue", NULL, "its owner must close it before the dump",
			    "\"%s\" is a POSIX message queue, which cannot be checkpointed", link);
	case SECRETMEM_MAGIC:
		return fail(&dump->failure, EOPNOTSUPP, "fd-secretmem", NULL, "its owner must close it before the dump",
			    "secret memory (memfd_secret) can be read by its owner only");
	default:
		return file_name_find(dump, task, fd, flags, link, stat, ret_state, ret_name);
	}
}

static void add_build_id(struct dump *dump, int fd, RegFileEntry *entry)
{
	uint32_t words[BUILD_ID_MAX_WORDS];
	int content = held_open(fd, O_RDONLY | O_NOATIME);

	if (content < 0)
		return;
	entry->n_build_id = build_id_read(content, words);
	if (entry->n_build_id)
		entry->build_id = arena_memdup(&dump->arena, words, entry->n_build_id * sizeof(*words));
	close(content);
}

/* Fills a new entry and keeps the file if its name is gone. @flags as F_GETFL shows them. */
static int describe(struct dump *dump, const struct dump_task *task, int fd, const struct stat *stat, const char *link,
		    uint32_t id, RegFileEntry *entry)
{
	enum file_name_state state;
	int error = find_name(dump, task, fd, (int)entry->flags, stat, link, &state, &entry->name);

	if (error < 0)
		return error;
	entry->id = id;
	entry->has_mode = true;
	entry->mode = stat->st_mode;
	entry->has_size = S_ISREG(stat->st_mode);
	entry->size = stat->st_size;
	if (state == FILE_NAME_GOOD)
		return 0;
	return remap_dump_file(dump, state_of_dump(dump)->remaps, id, entry, fd, stat);
}

static bool regular_match(const struct target_fd *target)
{
	mode_t type = target->stat.st_mode & S_IFMT;

	if (target->link[0] != '/')
		return false;
	return type == S_IFREG || type == S_IFDIR || type == S_IFCHR || type == S_IFBLK || (target->flags & O_PATH);
}

static int regular_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	mode_t type = target->stat.st_mode & S_IFMT;
	RegFileEntry *reg = arena_message(&dump->arena, RegFileEntry, reg_file_entry);

	if ((type == S_IFCHR || type == S_IFBLK) && !(target->flags & O_PATH)) {
		int error = check_device(dump, &target->stat, target->link);
		if (error < 0)
			return error;
	}
	reg->flags = target->flags;
	if ((target->flags & TMPFILE_BIT) == TMPFILE_BIT) {
		reg->flags &= ~O_TMPFILE;
		reg->has_tmpfile = reg->tmpfile = !target->stat.st_nlink;
	}
	reg->pos = target->position;
	reg->fown = target->fown;
	entry->reg = reg;
	return describe(dump, target->task, target->fd, &target->stat, target->link, target->file->id, reg);
}

static int add_file(struct dump *dump, struct dump_task *task, int fd, const struct stat *stat, const char *link,
		    int flags, uint32_t *ret_id)
{
	struct dump_file *file = dump_file_add(dump, &regular_kind);
	RegFileEntry *reg = arena_message(&dump->arena, RegFileEntry, reg_file_entry);

	file->task = task;
	file->stat = *stat;
	file->flags = flags;
	file->entry->type = FD_TYPES__REG;
	file->entry->reg = reg;
	reg->flags = flags;
	reg->fown = arena_message(&dump->arena, FownEntry, fown_entry);
	if (S_ISREG(stat->st_mode))
		add_build_id(dump, fd, reg);
	*ret_id = file->id;
	return describe(dump, task, fd, stat, link, file->id, reg);
}

/* By the file; what it holds may have another name. */
static struct known_file *find_known(struct dump *dump, const struct stat *stat, int flags)
{
	struct regular_dump *state = state_of_dump(dump);
	struct known_file *known, wanted = {};

	wanted.key.device = stat->st_dev;
	wanted.key.inode = stat->st_ino;
	wanted.key.flags = flags;
	HASH_FIND(hh, state->known, &wanted.key, sizeof(wanted.key), known);
	return known;
}

bool regular_is_known(struct dump *dump, const struct stat *stat, const char *link, int flags, uint32_t *ret_id)
{
	const struct known_file *known = find_known(dump, stat, flags);

	if (!known || strcmp(known->name, link))
		return false;
	*ret_id = known->id;
	return true;
}

int regular_dump_fd(struct dump *dump, struct dump_task *task, int fd, const char *link, int flags, uint32_t *ret_id)
{
	struct regular_dump *state = state_of_dump(dump);
	_cleanup_free_ char *own_link = NULL;
	char path[48];
	struct stat stat;
	uint32_t id;
	int error = 0;

	/* The names in /proc/PID/maps write a newline as "\012": there the link is asked again. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (!link || strstr(link, "\\012")) {
		error = read_link_at(AT_FDCWD, path, &own_link);
		link = own_link;
	}
	if (error < 0 || fstat(fd, &stat) < 0)
		return fail_errno(&dump->failure, error ? error : errno, "fd-stat", NULL, NULL,
				  "cannot look at the file");
	if (regular_is_known(dump, &stat, link, flags, ret_id))
		return 0;
	error = add_file(dump, task, fd, &stat, link, flags, &id);
	if (error < 0)
		return error;
	if (!find_known(dump, &stat, flags)) {
		struct known_file *added = arena_alloc(&dump->arena, sizeof(*added));
		added->key.device = stat.st_dev;
		added->key.inode = stat.st_ino;
		added->key.flags = flags;
		added->id = id;
		added->name = arena_strdup(&dump->arena, link);
		HASH_ADD(hh, state->known, key, sizeof(added->key), added);
	}
	*ret_id = id;
	return 0;
}

static int regular_dump_finish(struct dump *dump)
{
	return remap_dump_finish(dump, state_of_dump(dump)->remaps);
}

static void regular_dump_release(struct dump *dump, bool tree_is_gone)
{
	struct regular_dump *state = state_of_dump(dump);

	remap_dump_release(dump, state->remaps);
	HASH_CLEAR(hh, state->known);
}

/* ---- restore ---- */

/* The entry of a file of this kind, or NULL. */
static const RegFileEntry *entry_of(const struct restore *restore, uint32_t id)
{
	const struct restore_file *file = restore_find_file(restore, id);

	return file && file->entry->type == FD_TYPES__REG ? file->entry->reg : NULL;
}

bool regular_is_tmpfile(const struct restore *restore, uint32_t id, int *ret_flags)
{
	const RegFileEntry *entry = entry_of(restore, id);

	if (!entry || !entry->has_tmpfile || !entry->tmpfile)
		return false;
	*ret_flags = (int)(entry->flags & FLAGS_TO_OPEN & ~(uint32_t)(O_PATH | O_DIRECTORY | O_NOFOLLOW));
	return true;
}

const char *regular_name(const struct restore *restore, uint32_t id)
{
	const RegFileEntry *entry = entry_of(restore, id);

	return entry ? entry->name : NULL;
}

static int held_for(struct restore *restore, uint32_t id)
{
	const struct remap_restore *remaps = *restore_kind_state(restore, &regular_kind);

	return remaps ? remap_find(remaps, id) : -1;
}

/*
 * A symbolic link cannot be opened through its descriptor; one without a position may be shared. What is held of a file
 * made with O_TMPFILE is the one description of it that says so.
 */
static bool is_held_itself(const RegFileEntry *entry)
{
	return (entry->has_mode && S_ISLNK(entry->mode)) || (entry->has_tmpfile && entry->tmpfile);
}

/* Opens what the entry's path or remap leads to. Returns a descriptor or -errno. */
static int open_entry(struct restore *restore, const RegFileEntry *entry, int flags)
{
	int held = held_for(restore, entry->id);

	if (held >= 0 && is_held_itself(entry)) {
		int copy = fcntl(held, F_DUPFD_CLOEXEC, 0);
		return copy < 0 ? -errno : copy;
	}
	if (held >= 0)
		return held_open(held, flags);
	int fd = open(entry->name, flags | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

static int fail_open(struct restore *restore, const RegFileEntry *entry, int error)
{
	return fail_errno(&restore->failure, error, error == -ENOENT ? "file-missing" : "file-open", entry->name,
			  error == -ENOENT ? "copy it to the same path on this machine" : NULL, "cannot open it");
}

static bool has_other_build_id(const RegFileEntry *entry, int fd)
{
	uint32_t words[BUILD_ID_MAX_WORDS];
	size_t count = build_id_read(fd, words);

	return count != entry->n_build_id || memcmp(words, entry->build_id, count * sizeof(*words));
}

/* A file that is mapped, or a program: its content is part of the state. */
static int check_mapped(struct restore *restore, const RegFileEntry *entry, int fd, const struct stat *stat)
{
	static const char hint[] = "copy the file from the machine of the dump";
	bool may_grow = (entry->flags & O_ACCMODE) != O_RDONLY;

	if (entry->n_build_id && has_other_build_id(entry, fd))
		return fail(&restore->failure, ESTALE, "file-build-id", entry->name, hint,
			    "it is another build of the file than the one that was dumped");
	if (!entry->has_size || (uint64_t)stat->st_size == entry->size ||
	    (may_grow && (uint64_t)stat->st_size > entry->size))
		return 0;
	return fail(&restore->failure, ESTALE, "file-size", entry->name, hint,
		    "it has %lu bytes, the file that was dumped had %lu", (uint64_t)stat->st_size, entry->size);
}

/* A file behind a descriptor: others may write it too. */
static int check_open(struct restore *restore, const RegFileEntry *entry, const struct stat *stat)
{
	uint64_t size = stat->st_size;

	if (!entry->has_size || size == entry->size)
		return 0;
	if (size < entry->size && size < entry->pos && entry->pos <= entry->size)
		return fail(&restore->failure, ESTALE, "file-size", entry->name,
			    "copy the file from the machine of the dump",
			    "it has %lu bytes, less than the position %lu in it", size, entry->pos);
	log_warn("\"%s\" has %lu bytes, at the dump it had %lu", entry->name, size, entry->size);
	return 0;
}

static int check_type(struct restore *restore, const RegFileEntry *entry, const struct stat *stat)
{
	if ((stat->st_mode & S_IFMT) == (entry->mode & S_IFMT))
		return 0;
	return fail(&restore->failure, ESTALE, "file-type", entry->name, "copy the file from the machine of the dump",
		    "it is not a %s any more",
		    S_ISREG(entry->mode)    ? "regular file"
		    : S_ISDIR(entry->mode)  ? "directory"
		    : S_ISFIFO(entry->mode) ? "fifo"
					    : "file of its type");
}

static int stat_entry(const RegFileEntry *entry, struct stat *ret_stat)
{
	return fstatat(AT_FDCWD, entry->name, ret_stat, entry->flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0);
}

static int check_file(struct restore *restore, const struct restore_file *file)
{
	const RegFileEntry *entry = file->entry->reg;
	struct stat stat;

	if (!entry || entry->id != file->id || entry->name[0] != '/')
		return fail(&restore->failure, EPROTO, "image-reg-file", "files.img", NULL,
			    "the entry of file %u is damaged", file->id);
	if (entry->has_ext && entry->ext)
		return fail(&restore->failure, EOPNOTSUPP, "file-external", entry->name, NULL,
			    "it comes from outside the tree, which this release cannot restore");
	if (!entry->has_mode || held_for(restore, file->id) >= 0 || !strncmp(entry->name, "/proc/", strlen("/proc/")))
		return 0;
	/* A fifo in place of a device would hold the restore up; that one is missing is told when it is opened. */
	if (!S_ISREG(entry->mode))
		return stat_entry(entry, &stat) < 0 ? 0 : check_type(restore, entry, &stat);
	bool is_mapped = !file->user_count && !entry->pos && !(entry->flags & O_PATH);
	_cleanup_fd_ int fd = is_mapped ? open_entry(restore, entry, O_RDONLY | O_NONBLOCK) : -1;
	if (is_mapped ? fd < 0 || fstat(fd, &stat) < 0 : stat_entry(entry, &stat) < 0)
		return fail_open(restore, entry, fd < -1 ? fd : -errno);
	int error = check_type(restore, entry, &stat);
	if (error < 0)
		return error;
	if (stat.st_mode != entry->mode)
		log_warn("\"%s\" has mode %o, at the dump it had %o", entry->name, stat.st_mode, entry->mode);
	return is_mapped ? check_mapped(restore, entry, fd, &stat) : check_open(restore, entry, &stat);
}

static int regular_prepare(struct restore *restore)
{
	struct remap_restore **remaps = (struct remap_restore **)restore_kind_state(restore, &regular_kind);
	int error = remap_prepare(restore, remaps);

	for (size_t i = 0; i < restore->file_count && !error; i++)
		if (restore->files[i]->entry->type == FD_TYPES__REG)
			error = check_file(restore, restore->files[i]);
	return error;
}

int regular_open(struct restore *restore, uint32_t id, int flags, int *ret_fd)
{
	const RegFileEntry *entry = entry_of(restore, id);

	if (!entry)
		return fail(&restore->failure, EPROTO, "image-reg-file", "files.img", NULL,
			    "file %u is missing or has no path", id);
	int fd = open_entry(restore, entry, flags);
	if (fd < 0)
		return fail_open(restore, entry, fd);
	*ret_fd = fd;
	return 0;
}

/* Devices and directories of other file systems may not know the old position. */
static int set_position(struct restore *restore, const RegFileEntry *entry, int fd)
{
	if (!entry->pos || (entry->flags & O_PATH) || lseek(fd, entry->pos, SEEK_SET) >= 0)
		return 0;
	if (entry->has_mode && !S_ISREG(entry->mode)) {
		log_warn("\"%s\": cannot set the position %lu: %m", entry->name, entry->pos);
		return 0;
	}
	return fail_errno(&restore->failure, errno, "file-position", entry->name, NULL, "cannot set the position %lu",
			  entry->pos);
}

static int regular_restore(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const RegFileEntry *entry = file->entry->reg;
	_cleanup_fd_ int fd = -1;
	int error = regular_open(restore, file->id, entry->flags & FLAGS_TO_OPEN, &fd);

	if (!error)
		error = set_position(restore, entry, fd);
	/* open() would only record the bit, without the kernel's list behind it. */
	if (!error && (entry->flags & O_ASYNC) && fcntl(fd, F_SETFL, entry->flags) < 0)
		error = fail_errno(&restore->failure, errno, "file-flags", entry->name, NULL, "cannot set O_ASYNC");
	if (error < 0)
		return error;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int regular_before_resume(struct restore *restore)
{
	struct remap_restore *remaps = *restore_kind_state(restore, &regular_kind);

	if (remaps)
		remap_release(remaps);
	return 0;
}

const struct fd_kind regular_kind = {
	.name = "file",
	.type = FD_TYPES__REG,
	.match = regular_match,
	.dump = regular_dump,
	.dump_finish = regular_dump_finish,
	.dump_release = regular_dump_release,
	.prepare = regular_prepare,
	.open = regular_restore,
	.before_resume = regular_before_resume,
};
