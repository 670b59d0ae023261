/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files without a name.
 *
 * Dump: the content is reached through /proc/self/fd of our own descriptor, whatever it was opened for. A file with
 * holes is written as chunks, others as they are.
 * Restore: the file is made by criu under its old name (or one beside it, if that is in use now), and the name is
 * removed at once; everybody opens it through the descriptor that criu keeps. So nothing is left behind, however the
 * restore ends, and /proc shows the old name again. A file made with O_TMPFILE is made so again, because it can still
 * get a name; /proc then shows its new number. Directories that are gone too are made for that moment.
 */
#include "kinds/fd/ghost.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/time.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "kinds/fd/file_name.h"
#include "kinds/fd/held.h"

#include "ghost-file.pb-c.h"

enum { BLOCK_BYTES = 512, COPY_BYTES = 128 * 1024, NAME_ATTEMPTS = 1000, NO_TMPFILE = -1 };

/* The format's device numbers: 12 bits major, 20 bits minor. */
static uint32_t encode_device(dev_t device)
{
	return major(device) << 20 | (minor(device) & 0xfffff);
}

/* ---- dump ---- */

static uint64_t allocated_bytes(const struct stat *stat)
{
	uint64_t allocated = (uint64_t)stat->st_blocks * BLOCK_BYTES;

	return allocated < (uint64_t)stat->st_size ? allocated : (uint64_t)stat->st_size;
}

static int check_limit(struct dump *dump, const struct stat *stat)
{
	uint64_t bytes = allocated_bytes(stat), limit = dump->options->ghost_limit_bytes;
	const char *hint = arena_printf(&dump->arena, "raise --ghost-limit above %lu", bytes);

	if (bytes <= limit)
		return 0;
	return fail(&dump->failure, EFBIG, "ghost-limit", NULL, hint,
		    "the file is deleted and has %lu bytes, more than the limit of %lu", bytes, limit);
}

static int fail_read(struct dump *dump, int error)
{
	return fail_errno(&dump->failure, error, "ghost-read", NULL, NULL, "cannot read the deleted file");
}

/* The kernel moves the position of @fd, which is ours alone. */
static int write_chunks(struct dump *dump, struct image *image, int fd, off_t size)
{
	off_t data = lseek(fd, 0, SEEK_DATA);

	while (data >= 0 && data < size) {
		GhostChunkEntry chunk = GHOST_CHUNK_ENTRY__INIT;
		off_t hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0 || lseek(fd, data, SEEK_SET) < 0)
			return fail_read(dump, errno);
		chunk.off = data;
		chunk.len = (hole < size ? hole : size) - data;
		image_write(image, &chunk.base);
		if (image_write_from_fd(image, fd, chunk.len) < 0)
			return 0; /* image_close() tells */
		data = lseek(fd, hole, SEEK_DATA);
	}
	return data < 0 && errno != ENXIO ? fail_read(dump, errno) : 0;
}

static int write_content(struct dump *dump, struct image *image, int fd, const struct stat *stat, bool chunks)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	_cleanup_fd_ int content = open(path, O_RDONLY | O_NOATIME | O_CLOEXEC);
	if (content < 0)
		return fail_read(dump, errno);
	if (chunks)
		return write_chunks(dump, image, content, stat->st_size);
	image_write_from_fd(image, content, stat->st_size);
	return 0;
}

static void describe(GhostFileEntry *entry, Timeval *access, Timeval *modification, const struct stat *stat)
{
	entry->uid = stat->st_uid;
	entry->gid = stat->st_gid;
	entry->mode = stat->st_mode;
	entry->has_dev = entry->has_ino = true;
	entry->dev = encode_device(stat->st_dev);
	entry->ino = stat->st_ino;
	entry->has_rdev = S_ISCHR(stat->st_mode) || S_ISBLK(stat->st_mode);
	entry->rdev = stat->st_rdev;
	access->tv_sec = stat->st_atim.tv_sec;
	access->tv_usec = stat->st_atim.tv_nsec / 1000;
	modification->tv_sec = stat->st_mtim.tv_sec;
	modification->tv_usec = stat->st_mtim.tv_nsec / 1000;
	entry->atim = access;
	entry->mtim = modification;
}

int ghost_dump(struct dump *dump, int fd, const struct stat *stat, uint32_t id)
{
	GhostFileEntry entry = GHOST_FILE_ENTRY__INIT;
	Timeval access = TIMEVAL__INIT, modification = TIMEVAL__INIT;
	char target[PATH_MAX];
	struct image *image;
	bool chunks = S_ISREG(stat->st_mode) && allocated_bytes(stat) < (uint64_t)stat->st_size;
	int error = S_ISREG(stat->st_mode) ? check_limit(dump, stat) : 0;

	if (error < 0 || dump->only_explain)
		return error;
	describe(&entry, &access, &modification, stat);
	entry.has_chunks = entry.chunks = chunks;
	entry.has_size = chunks;
	entry.size = stat->st_size;
	if (S_ISLNK(stat->st_mode)) {
		ssize_t length = readlinkat(fd, "", target, sizeof(target) - 1);
		if (length < 0)
			return fail_read(dump, errno);
		target[length] = '\0';
		entry.symlnk_target = target;
	}
	error = image_create(dump->images_dirfd, &dump->failure, IMAGE_GHOST_FILE, id, &image);
	if (error < 0)
		return error;
	image_write(image, &entry.base);
	if (S_ISREG(stat->st_mode) && stat->st_size)
		error = write_content(dump, image, fd, stat, chunks);
	int closed = image_close(&image);
	return error ? error : closed;
}

/* ---- restore ---- */

/* Writes the next @size bytes of the image at @offset. */
static int copy_from_image(struct restore *restore, struct image *image, int fd, uint64_t offset, uint64_t size)
{
	_cleanup_free_ char *buffer = xcalloc(1, COPY_BYTES);

	while (size) {
		size_t piece = size < COPY_BYTES ? size : COPY_BYTES;
		int error = image_read_raw(image, buffer, piece);
		if (error < 0)
			return error;
		error = pwrite_full(fd, buffer, piece, offset);
		if (error < 0)
			return fail_errno(&restore->failure, error, "ghost-write", NULL, NULL,
					  "cannot write the content of the deleted file");
		offset += piece;
		size -= piece;
	}
	return 0;
}

static int read_chunks(struct restore *restore, struct image *image, int fd, uint64_t size)
{
	ProtobufCMessage *message;
	int got;

	while ((got = image_read(image, &message)) > 0) {
		if (message->descriptor != &ghost_chunk_entry__descriptor) {
			image_message_free(message);
			return fail(&restore->failure, EPROTO, "image-ghost", NULL, NULL, "it holds no chunks");
		}
		uint64_t offset = ((GhostChunkEntry *)message)->off, length = ((GhostChunkEntry *)message)->len;
		image_message_free(message);
		if (offset > size || length > size - offset)
			return fail(&restore->failure, EPROTO, "image-ghost", NULL, NULL,
				    "a chunk lies outside the file");
		int error = copy_from_image(restore, image, fd, offset, length);
		if (error < 0)
			return error;
	}
	return got;
}

static int read_plain(struct restore *restore, struct image *image, int fd)
{
	struct stat stat;

	if (fstat(image_fd(image), &stat) < 0)
		return fail_errno(&restore->failure, errno, "image-ghost", NULL, NULL, "cannot measure the image");
	if (stat.st_size < image_offset(image))
		return fail(&restore->failure, ENODATA, "image-ghost", NULL, NULL, "the image is cut off");
	return copy_from_image(restore, image, fd, 0, stat.st_size - image_offset(image));
}

static int fill(struct restore *restore, struct image *image, const GhostFileEntry *entry, int fd)
{
	char path[48];

	if (!S_ISREG(entry->mode))
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	_cleanup_fd_ int content = open(path, O_WRONLY | O_CLOEXEC);
	if (entry->has_size && entry->size > INT64_MAX)
		return fail(&restore->failure, EFBIG, "ghost-write", NULL, NULL,
			    "no file has the size of the deleted file");
	if (content < 0 || (entry->has_size && ftruncate(content, entry->size) < 0))
		return fail_errno(&restore->failure, errno, "ghost-write", NULL, NULL,
				  "cannot give the deleted file its size");
	return entry->has_chunks && entry->chunks ? read_chunks(restore, image, content, entry->size)
						  : read_plain(restore, image, content);
}

/* Makes one name. Returns 0 or -errno (-EEXIST: the name is in use). */
static int make_name(const GhostFileEntry *entry, const char *path)
{
	int result;

	if (S_ISDIR(entry->mode))
		result = mkdir(path, 0700);
	else if (S_ISLNK(entry->mode))
		result = symlink(entry->symlnk_target ? entry->symlnk_target : "", path);
	else
		result = mknod(path, (entry->mode & S_IFMT) | 0600, entry->has_rdev ? entry->rdev : 0);
	return result < 0 ? -errno : 0;
}

static int open_and_remove(const GhostFileEntry *entry, const char *path, int *ret_fd)
{
	_cleanup_fd_ int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int error = fd < 0 ? -errno : 0;

	if ((S_ISDIR(entry->mode) ? rmdir(path) : unlink(path)) < 0 && !error)
		error = -errno;
	if (!error)
		*ret_fd = TAKE_FD(fd);
	return error;
}

static int make_unnamed(const GhostFileEntry *entry, const char *path, int tmpfile_flags, int *ret_fd);

/* Like others, but opened: there is one description that has the flags. */
static int make_like_others(const GhostFileEntry *entry, const char *path, int flags, int *ret_fd)
{
	_cleanup_fd_ int named = -1;
	int error = make_unnamed(entry, path, NO_TMPFILE, &named);

	if (error < 0)
		return error;
	log_warn("\"%s\" had no name and could get one; the file system here cannot make such files, so it cannot any "
		 "more",
		 path);
	int fd = held_open(named, flags);
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

static int make_tmpfile(const GhostFileEntry *entry, const char *path, int flags, int *ret_fd)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *directory = slash > path ? xasprintf("%.*s", (int)(slash - path), path) : xstrdup("/");
	int fd = open(directory, flags | O_TMPFILE | O_CLOEXEC, 0600);

	if (fd < 0)
		return errno == EOPNOTSUPP || errno == EISDIR ? make_like_others(entry, path, flags, ret_fd) : -errno;
	*ret_fd = fd;
	return 0;
}

/* Makes a file without a name in the directory of @path. Returns 0 or -errno. */
static int make_unnamed(const GhostFileEntry *entry, const char *path, int tmpfile_flags, int *ret_fd)
{
	if (tmpfile_flags != NO_TMPFILE)
		return make_tmpfile(entry, path, tmpfile_flags, ret_fd);

	_cleanup_free_ char *name = xstrdup(path);
	int error = make_name(entry, name);

	for (int i = 0; error == -EEXIST && i < NAME_ATTEMPTS; i++) {
		free(name);
		name = xasprintf("%s" FILE_NAME_SUBSTITUTE "%d", path, i);
		error = make_name(entry, name);
	}
	return error < 0 ? error : open_and_remove(entry, name, ret_fd);
}

/* Makes the directories of @path that are missing, and tells the length of the first path that was made. */
static int make_parents(char *path, size_t *ret_made)
{
	*ret_made = 0;
	for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		int error = mkdir(path, 0700) < 0 ? errno : 0;
		if (!error && !*ret_made)
			*ret_made = slash - path;
		*slash = '/';
		if (error && error != EEXIST)
			return -error;
	}
	return 0;
}

static void remove_parents(char *path, size_t made)
{
	char *slash;

	while (made && (slash = strrchr(path, '/')) && (size_t)(slash - path) >= made) {
		*slash = '\0';
		rmdir(path);
	}
}

/* With its directories, which may be gone too, for as long as it takes. */
static int make_with_parents(const GhostFileEntry *entry, const char *path, int tmpfile_flags, int *ret_fd)
{
	_cleanup_free_ char *copy = xstrdup(path);
	size_t made;
	int error = make_unnamed(entry, path, tmpfile_flags, ret_fd);

	if (error != -ENOENT)
		return error;
	error = make_parents(copy, &made);
	if (!error)
		error = make_unnamed(entry, path, tmpfile_flags, ret_fd);
	remove_parents(copy, made);
	return error;
}

/* Owner before mode: chown clears the set-id bits. Times last. */
static int set_attributes(struct restore *restore, const GhostFileEntry *entry, int fd)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fchownat(fd, "", entry->uid, entry->gid, AT_EMPTY_PATH) < 0)
		return fail_errno(&restore->failure, errno, "ghost-owner", NULL, NULL,
				  "cannot give the deleted file to user %u, group %u", entry->uid, entry->gid);
	if (S_ISLNK(entry->mode))
		return 0;
	if (chmod(path, entry->mode & 07777) < 0)
		return fail_errno(&restore->failure, errno, "ghost-mode", NULL, NULL,
				  "cannot set the mode of the deleted file");
	if (!entry->atim || !entry->mtim)
		return 0;
	struct timespec times[2] = {{entry->atim->tv_sec, entry->atim->tv_usec % 1000000 * 1000},
				    {entry->mtim->tv_sec, entry->mtim->tv_usec % 1000000 * 1000}};
	if (utimensat(AT_FDCWD, path, times, 0) < 0)
		return fail_errno(&restore->failure, errno, "ghost-times", NULL, NULL,
				  "cannot set the times of the deleted file");
	return 0;
}

static int make_from_image(struct restore *restore, struct image *image, const char *path, int tmpfile_flags,
			   int *ret_fd)
{
	ProtobufCMessage *message = NULL;
	int fd = -1, got = image_read(image, &message);

	if (got <= 0)
		return got < 0 ? got : fail(&restore->failure, EPROTO, "image-ghost", NULL, NULL, "it is empty");
	const GhostFileEntry *entry = (const GhostFileEntry *)message;
	int error = make_with_parents(entry, path, tmpfile_flags, &fd);
	if (error < 0)
		fail_errno(&restore->failure, error, "ghost-make", NULL, "its directory must exist and be writable",
			   "cannot make the deleted file \"%s\" again", path);
	if (!error)
		error = fill(restore, image, entry, fd);
	if (!error)
		error = set_attributes(restore, entry, fd);
	image_message_free(message);
	if (error < 0) {
		close_fd_pointer(&fd);
		return error;
	}
	*ret_fd = fd;
	return 0;
}

int ghost_make(struct restore *restore, uint32_t id, const char *path, int tmpfile_flags, int *ret_fd)
{
	struct image *image;
	char name[64];
	int error = restore_image_open(restore, IMAGE_GHOST_FILE, id, &image);

	image_name(IMAGE_GHOST_FILE, id, name, sizeof(name));
	if (error == -ENOENT)
		return fail(&restore->failure, ENOENT, "image-missing", name, "copy the images directory again",
			    "the content of the deleted file \"%s\" is missing", path);
	if (error < 0)
		return error;
	error = make_from_image(restore, image, path, tmpfile_flags, ret_fd);
	if (error < 0)
		fail_in(&restore->failure, "%s", name);
	int closed = image_close(&image);
	return error ? error : closed;
}

int ghost_rename(int fd, const char *path)
{
	if (linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH) < 0)
		return fd;
	int named = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	unlink(path);
	if (named < 0)
		return fd;
	close(fd);
	return named;
}
