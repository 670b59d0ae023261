/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three states of a file whose path is gone:
 *	no name at all (link count 0): its content goes into a ghost image, one for each inode;
 *	other names, unknown ones: content in an image would make two files of one, so a new name next to the old
 *	one is made (--link-remap). It stays until the restore has opened it, and goes at once if the dump fails;
 *	a process's file in procfs, and the process has ended: refused (file_name.c).
 */
#include "kinds/fd/remap.h"

#include <fcntl.h>
#include <string.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/ghost.h"
#include "kinds/fd/held.h"
#include "kinds/fd/regular.h"

#include "remap-file-path.pb-c.h"

enum { NAME_ATTEMPTS = 10000 };

/* Images of releases that had no remap_type mark ghosts so. */
#define OLD_GHOST_BIT 0x80000000u

/* One inode without its name. */
struct lost_inode {
	struct {
		uint64_t device, inode;
	} key;
	RemapType type;
	uint32_t remap_id; /* of the ghost image, or of the file that has the new name */
	UT_hash_handle hh;
};

struct remap_dump {
	struct lost_inode *inodes;
	RemapFilePathEntry *entries;
	size_t entry_count, entry_capacity;
	char **new_names;
	size_t name_count, name_capacity;
};

struct remap_dump *remap_dump_new(struct dump *dump)
{
	return arena_alloc(&dump->arena, sizeof(struct remap_dump));
}

/* A name that an earlier dump made, for images that may still need it. */
static bool is_name_of(const char *path, const struct stat *stat)
{
	struct stat found;

	return !lstat(path, &found) && found.st_dev == stat->st_dev && found.st_ino == stat->st_ino;
}

/* Gives the file a name beside its old one. Returns 0 or a failure. */
static int make_name(struct dump *dump, struct remap_dump *remaps, const char *path, int fd, const struct stat *stat,
		     char **ret_name)
{
	const char *slash = strrchr(path, '/');

	for (int i = 1; slash && i <= NAME_ATTEMPTS; i++) {
		char *name = arena_printf(&dump->arena, "%.*s/link_remap.%d", (int)(slash - path), path, i);
		*ret_name = name;
		if (!linkat(fd, "", AT_FDCWD, name, AT_EMPTY_PATH)) {
			ARRAY_GROW(remaps->new_names, remaps->name_count, remaps->name_capacity);
			remaps->new_names[remaps->name_count++] = name;
			return 0;
		}
		if (errno != EEXIST)
			break;
		if (is_name_of(name, stat))
			return 0;
	}
	return fail_errno(&dump->failure, errno, "link-remap", NULL,
			  "its owner must close it, or its directory must exist and be writable",
			  "cannot make a new name beside \"%s\"", path);
}

static int link_file(struct dump *dump, struct remap_dump *remaps, const RegFileEntry *entry, int fd,
		     const struct stat *stat, uint32_t *ret_remap_id)
{
	char *name = NULL;

	if (!dump->options->link_remap)
		return fail(&dump->failure, ENOENT, "file-unlinked", NULL,
			    "--link-remap gives it a name beside the old one until it is restored",
			    "\"%s\" was deleted, but the file has other names that are unknown", entry->name);
	if (dump->only_explain)
		return 0;
	int error = make_name(dump, remaps, entry->name, fd, stat, &name);
	if (error < 0)
		return error;
	struct dump_file *file = dump_file_add(dump, &regular_kind);
	file->entry->type = FD_TYPES__REG;
	file->entry->reg = arena_memdup(&dump->arena, entry, sizeof(*entry));
	file->entry->reg->id = file->id;
	file->entry->reg->name = name;
	*ret_remap_id = file->id;
	return 0;
}

static int keep_inode(struct dump *dump, struct remap_dump *remaps, struct lost_inode *lost, const RegFileEntry *entry,
		      int fd, const struct stat *stat)
{
	if (stat->st_nlink && !S_ISDIR(stat->st_mode)) {
		lost->type = REMAP_TYPE__LINKED;
		return link_file(dump, remaps, entry, fd, stat, &lost->remap_id);
	}
	lost->type = REMAP_TYPE__GHOST;
	lost->remap_id = ++dump->next_object_id;
	return ghost_dump(dump, fd, stat, lost->remap_id);
}

int remap_dump_file(struct dump *dump, struct remap_dump *remaps, uint32_t id, const RegFileEntry *entry, int fd,
		    const struct stat *stat)
{
	struct lost_inode *lost, *wanted = arena_alloc(&dump->arena, sizeof(*wanted));

	wanted->key.device = stat->st_dev;
	wanted->key.inode = stat->st_ino;
	HASH_FIND(hh, remaps->inodes, &wanted->key, sizeof(wanted->key), lost);
	if (!lost) {
		int error = keep_inode(dump, remaps, wanted, entry, fd, stat);
		if (error < 0)
			return error;
		lost = wanted;
		HASH_ADD(hh, remaps->inodes, key, sizeof(lost->key), lost);
	}
	ARRAY_GROW(remaps->entries, remaps->entry_count, remaps->entry_capacity);
	RemapFilePathEntry *remap = &remaps->entries[remaps->entry_count++];
	remap_file_path_entry__init(remap);
	remap->orig_id = id;
	remap->remap_id = lost->remap_id;
	remap->has_remap_type = true;
	remap->remap_type = lost->type;
	return 0;
}

int remap_dump_finish(struct dump *dump, struct remap_dump *remaps)
{
	struct image *image;

	if (!remaps->entry_count || dump->only_explain)
		return 0;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_REMAP_FPATH, 0, &image);
	if (error < 0)
		return error;
	for (size_t i = 0; i < remaps->entry_count; i++)
		image_write(image, &remaps->entries[i].base);
	return image_close(&image);
}

void remap_dump_release(struct dump *dump, struct remap_dump *remaps)
{
	for (size_t i = 0; i < remaps->name_count && failure_is_set(&dump->failure); i++)
		unlink(remaps->new_names[i]);
	HASH_CLEAR(hh, remaps->inodes);
	free(remaps->entries);
	free(remaps->new_names);
	*remaps = (struct remap_dump){};
}

/* ---- restore ---- */

/* What leads to the file with this id. */
struct found_file {
	uint32_t key;
	int held;
	UT_hash_handle hh;
};

/* A ghost, or a name that the dump made; several files may be descriptors of it. */
struct made_file {
	uint64_t key; /* remap_id << 8 | type */
	int held;
	const char *name_to_remove;
	UT_hash_handle hh;
};

struct remap_restore {
	struct found_file *files;
	struct made_file *made;
};

/* The name that the dump made: an absolute path that exists. */
static int open_link(struct restore *restore, uint32_t remap_id, int *ret_fd, const char **ret_name)
{
	const char *name = regular_name(restore, remap_id);

	if (!name)
		return fail(&restore->failure, EPROTO, "image-remap", "remap-fpath.img", NULL,
			    "file %u is not in files.img", remap_id);
	_cleanup_fd_ int fd = open(name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "file-missing", name,
				  "it was made by the dump (--link-remap): copy it here", "cannot open it");
	*ret_name = name;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int make_file(struct restore *restore, const RemapFilePathEntry *remap, RemapType type, const char *path,
		     struct made_file *made)
{
	int fd = -1, tmpfile_flags, error;

	if (!regular_is_tmpfile(restore, remap->orig_id, &tmpfile_flags))
		tmpfile_flags = -1;
	if (type == REMAP_TYPE__GHOST)
		error = ghost_make(restore, remap->remap_id & ~OLD_GHOST_BIT, path, tmpfile_flags, &fd);
	else if (type == REMAP_TYPE__LINKED)
		error = open_link(restore, remap->remap_id, &fd, &made->name_to_remove);
	else
		error = fail(&restore->failure, EOPNOTSUPP, "image-remap", "remap-fpath.img", NULL,
			     "\"%s\" belongs to a process that had ended", path);
	if (error < 0)
		return error;
	if (made->name_to_remove)
		fd = ghost_rename(fd, path);
	error = held_keep(restore, &fd);
	if (error < 0)
		close(fd);
	else
		made->held = fd;
	return error;
}

static int read_remap(struct restore *restore, struct remap_restore *remaps, const RemapFilePathEntry *remap)
{
	const char *path = regular_name(restore, remap->orig_id);
	RemapType type = remap->has_remap_type             ? remap->remap_type
			 : remap->remap_id & OLD_GHOST_BIT ? REMAP_TYPE__GHOST
							   : REMAP_TYPE__LINKED;
	uint64_t key = (uint64_t)remap->remap_id << 8 | type;
	struct made_file *made;
	struct found_file *file;

	/* Deleted fifos and sockets may have entries of other kinds, which look after themselves. */
	if (!path)
		return 0;
	HASH_FIND(hh, remaps->made, &key, sizeof(key), made);
	if (!made) {
		made = arena_alloc(&restore->arena, sizeof(*made));
		made->key = key;
		int error = make_file(restore, remap, type, path, made);
		if (error < 0)
			return error;
		HASH_ADD(hh, remaps->made, key, sizeof(made->key), made);
	}
	file = arena_alloc(&restore->arena, sizeof(*file));
	file->key = remap->orig_id;
	file->held = made->held;
	HASH_ADD(hh, remaps->files, key, sizeof(file->key), file);
	return 0;
}

struct entry_list {
	RemapFilePathEntry **items;
	size_t count, capacity;
};

/* Of a file made with O_TMPFILE first the description that says so: it makes the file for the others. */
static int read_remaps(struct restore *restore, struct remap_restore *remaps, const struct entry_list *entries)
{
	int error = 0, ignored;

	for (int first = 1; first >= 0; first--)
		for (size_t i = 0; i < entries->count && !error; i++)
			if (regular_is_tmpfile(restore, entries->items[i]->orig_id, &ignored) == (first == 1))
				error = read_remap(restore, remaps, entries->items[i]);
	return error;
}

int remap_prepare(struct restore *restore, struct remap_restore **ret_remaps)
{
	struct remap_restore *remaps = arena_alloc(&restore->arena, sizeof(*remaps));
	struct entry_list entries = {};
	ProtobufCMessage *message;
	struct image *image;
	int got, error = restore_image_open(restore, IMAGE_REMAP_FPATH, 0, &image);

	*ret_remaps = remaps;
	if (error == -ENOENT)
		return 0;
	if (error < 0)
		return error;
	while ((got = image_read(image, &message)) > 0) {
		ARRAY_GROW(entries.items, entries.count, entries.capacity);
		entries.items[entries.count++] = (RemapFilePathEntry *)message;
	}
	if (got == 0)
		error = read_remaps(restore, remaps, &entries);
	for (size_t i = 0; i < entries.count; i++)
		image_message_free(&entries.items[i]->base);
	free(entries.items);
	int closed = image_close(&image);
	return error ? error : got < 0 ? got : closed;
}

int remap_find(const struct remap_restore *remaps, uint32_t id)
{
	const struct found_file *file;

	HASH_FIND(hh, remaps->files, &id, sizeof(id), file);
	return file ? file->held : -1;
}

void remap_release(struct remap_restore *remaps)
{
	for (struct made_file *made = remaps->made; made; made = made->hh.next) {
		if (made->name_to_remove && unlink(made->name_to_remove) < 0)
			log_warn("cannot remove \"%s\", which the dump made: %m", made->name_to_remove);
		close_fd_pointer(&made->held);
	}
	HASH_CLEAR(hh, remaps->files);
	HASH_CLEAR(hh, remaps->made);
}
