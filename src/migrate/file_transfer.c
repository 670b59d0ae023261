/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination writes as root what another machine sends, so the name is guarded on the way: the directory is
 * opened without following any symbolic link, the new file is made in it under a random name, and renamed over the old
 * one when it is complete and its checksum is right. Whoever can write into the directory can at worst make it fail.
 */
#include "migrate/file_transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/hash.h"
#include "migrate/protocol.h"

/* ---- source ---- */

struct sending {
	struct protocol *protocol;
	const FileNeed *need;
	FileNeed *now; /* may be NULL */
	size_t now_capacity;
	int fd;
	uint64_t offset, size;
	XXH3_state_t *hash;
	uint8_t *block;
	FileData message; /* a run of blocks of one kind that is not sent yet */
	bool has_message;
};

static int flush_run(struct sending *sending, struct failure *failure)
{
	if (!sending->has_message)
		return 0;
	sending->has_message = false;
	return protocol_send(sending->protocol, MESSAGE_FILE_DATA, &sending->message, failure);
}

static void start_run(struct sending *sending, uint64_t offset)
{
	file_data__init(&sending->message);
	sending->message.file = sending->need->file;
	sending->message.offset = offset;
	sending->has_message = true;
}

static bool is_zero(const uint8_t *block, size_t size)
{
	return !block[0] && !memcmp(block, block + 1, size - 1);
}

/* A block of zeros, one that the other side has, or data. Runs of the first two become one message. */
static int send_block(struct sending *sending, uint64_t offset, size_t size, struct failure *failure)
{
	uint64_t index = offset / FILE_BLOCK_BYTES;
	FileData *message = &sending->message;
	bool zero = is_zero(sending->block, size);
	bool same = !zero && size == FILE_BLOCK_BYTES && sending->need->block_bytes == FILE_BLOCK_BYTES &&
		    index < sending->need->n_blocks &&
		    XXH3_64bits(sending->block, size) == sending->need->blocks[index];
	int r = 0;

	if (sending->has_message && ((zero && message->has_hole_bytes) || (same && message->has_copy_bytes))) {
		message->hole_bytes += zero ? size : 0;
		message->copy_bytes += same ? size : 0;
		return 0;
	}
	r = flush_run(sending, failure);
	if (r < 0)
		return r;
	start_run(sending, offset);
	message->has_hole_bytes = zero;
	message->hole_bytes = zero ? size : 0;
	message->has_copy_bytes = message->has_copy_offset = same;
	message->copy_bytes = same ? size : 0;
	message->copy_offset = same ? offset : 0;
	if (zero || same)
		return 0;
	message->has_data = true;
	message->data = (ProtobufCBinaryData){size, sending->block};
	return flush_run(sending, failure);
}

static void remember_block(struct sending *sending, size_t size)
{
	FileNeed *now = sending->now;

	if (!now || size < FILE_BLOCK_BYTES)
		return;
	ARRAY_GROW(now->blocks, now->n_blocks, sending->now_capacity);
	now->blocks[now->n_blocks++] = XXH3_64bits(sending->block, size);
}

/* The whole file as it is now: a tree that writes to it meanwhile is asked again when it stands still. */
static int send_blocks(struct sending *sending, const MigrateFile *file,
		       void (*sent)(void *context, const char *path, uint64_t sent_bytes, uint64_t size), void *context,
		       struct failure *failure)
{
	for (uint64_t offset = 0;;) {
		ssize_t size = pread(sending->fd, sending->block, FILE_BLOCK_BYTES, (off_t)offset);

		if (size < 0)
			return fail_errno(failure, errno, "file-read", file->path, NULL, "cannot be read");
		if (!size)
			break;
		XXH3_64bits_update(sending->hash, sending->block, (size_t)size);
		remember_block(sending, (size_t)size);
		int r = send_block(sending, offset, (size_t)size, failure);
		if (r < 0)
			return r;
		offset += (uint64_t)size;
		sending->offset = offset;
		if (sent)
			sent(context, file->path, offset, file->size);
		/* Blocks must lie where the other side's hashes are: a short read is the end. */
		if (size < FILE_BLOCK_BYTES)
			break;
	}
	int r = flush_run(sending, failure);
	if (r < 0)
		return r;
	start_run(sending, sending->offset);
	sending->message.last = true;
	sending->message.has_checksum = true;
	sending->message.checksum = XXH3_64bits_digest(sending->hash);
	return flush_run(sending, failure);
}

int file_send(struct protocol *protocol, int root_dirfd, const MigrateFile *file, const FileNeed *need, FileNeed *now,
	      void (*sent)(void *context, const char *path, uint64_t sent_bytes, uint64_t size), void *context,
	      struct failure *failure)
{
	_cleanup_fd_ int fd =
		openat(root_dirfd, file->path + strspn(file->path, "/"), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_free_ uint8_t *block = xcalloc(1, FILE_BLOCK_BYTES);
	struct sending sending = {.protocol = protocol, .need = need, .now = now, .fd = fd, .block = block};

	if (fd < 0)
		return fail_errno(failure, errno, "file-read", file->path, NULL, "cannot be opened to be sent");
	if (now) {
		file_need__init(now);
		now->file = need->file;
		now->block_bytes = FILE_BLOCK_BYTES;
	}
	sending.hash = XXH3_createState();
	XXH3_64bits_reset(sending.hash);
	int r = send_blocks(&sending, file, sent, context, failure);
	XXH3_freeState(sending.hash);
	return r;
}

/* ---- destination: what is there ---- */

void file_need_fill(struct arena *arena, const char *path, FileNeed *need)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	_cleanup_free_ uint8_t *block = xcalloc(1, FILE_BLOCK_BYTES);
	struct stat status;

	need->block_bytes = 0;
	need->n_blocks = 0;
	if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size < FILE_BLOCK_BYTES)
		return;
	size_t count = (size_t)status.st_size / FILE_BLOCK_BYTES;
	/* The list has to fit into a message with those of other files. */
	if (count > (4 << 20) / sizeof(uint64_t))
		count = (4 << 20) / sizeof(uint64_t);
	need->block_bytes = FILE_BLOCK_BYTES;
	need->blocks = arena_alloc(arena, count * sizeof(*need->blocks));
	for (size_t i = 0; i < count; i++) {
		if (pread_full(fd, block, FILE_BLOCK_BYTES, (off_t)i * FILE_BLOCK_BYTES) < 0)
			return;
		need->blocks[need->n_blocks++] = XXH3_64bits(block, FILE_BLOCK_BYTES);
	}
}

/* ---- destination: what comes ---- */

struct file_arrival {
	const MigrateFile *file;
	char *path; /* of the file */
	const char *name;
	char temporary[40];
	int dirfd, fd, old_fd; /* old_fd: -1 = there is none */
	uint64_t offset;
	XXH3_state_t *hash;
	bool complete;
};

static int write_failure(const struct file_arrival *arrival, int error, const char *cause, struct failure *failure)
{
	return fail_errno(failure, error, "file-write", arrival->path, "make room, or copy the file by hand", "%s",
			  cause);
}

static int open_directory(const char *path, struct failure *failure, int *ret_dirfd)
{
	const struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));

	if (fd >= 0) {
		*ret_dirfd = fd;
		return 0;
	}
	if (errno == ELOOP)
		return fail(failure, ELOOP, "file-path", path, "copy the file by hand",
			    "a symbolic link is on the way, which a file that was sent must not follow");
	return fail_errno(failure, errno, "file-path", path, "make the directory first", "cannot be opened");
}

static int make_temporary(struct file_arrival *arrival, struct failure *failure)
{
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return write_failure(arrival, errno, "no random name", failure);
	snprintf(arrival->temporary, sizeof(arrival->temporary), ".criu-%016llx", (unsigned long long)random);
	arrival->fd =
		openat(arrival->dirfd, arrival->temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return arrival->fd < 0 ? write_failure(arrival, errno, "no file can be made there", failure) : 0;
}

int file_arrival_new(const MigrateFile *file, struct failure *failure, struct file_arrival **ret_arrival)
{
	struct file_arrival *arrival = xcalloc(1, sizeof(*arrival));

	*arrival =
		(struct file_arrival){.file = file, .path = xstrdup(file->path), .dirfd = -1, .fd = -1, .old_fd = -1};
	_cleanup_free_ char *directory = xstrdup(file->path);
	char *slash = strrchr(directory, '/');
	arrival->name = arrival->path + (slash - directory) + 1;
	slash[slash == directory] = 0;
	int r;
	if (!*arrival->name || !strcmp(arrival->name, ".") || !strcmp(arrival->name, ".."))
		r = fail(failure, EPROTO, "file-path", file->path, NULL, "is no name of a file");
	else
		r = open_directory(directory, failure, &arrival->dirfd) ?: make_temporary(arrival, failure);
	if (r < 0) {
		file_arrival_free(&arrival);
		return r;
	}
	arrival->old_fd = openat(arrival->dirfd, arrival->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
	arrival->hash = XXH3_createState();
	XXH3_64bits_reset(arrival->hash);
	*ret_arrival = arrival;
	return 0;
}

static int put(struct file_arrival *arrival, const uint8_t *bytes, size_t size, struct failure *failure)
{
	XXH3_64bits_update(arrival->hash, bytes, size);
	int r = pwrite_full(arrival->fd, bytes, size, (off_t)arrival->offset);
	if (r < 0)
		return write_failure(arrival, r, "cannot be written", failure);
	arrival->offset += size;
	return 0;
}

/* Copies from the old file; if that has changed since it was hashed, the checksum at the end will tell. */
static int copy_old(struct file_arrival *arrival, uint64_t offset, uint64_t bytes, struct failure *failure)
{
	_cleanup_free_ uint8_t *block = xcalloc(1, FILE_BLOCK_BYTES);

	if (arrival->old_fd < 0)
		return fail(failure, EPROTO, "protocol-message", arrival->path, NULL,
			    "parts of an old file are meant that is not there");
	while (bytes) {
		size_t size = bytes < FILE_BLOCK_BYTES ? (size_t)bytes : FILE_BLOCK_BYTES;

		int r = pread_full(arrival->old_fd, block, size, (off_t)offset);
		if (r < 0)
			return write_failure(arrival, r, "the old file cannot be read", failure);
		r = put(arrival, block, size, failure);
		if (r < 0)
			return r;
		offset += size;
		bytes -= size;
	}
	return 0;
}

/* The zeros must be hashed too. A source cannot make that endless: sizes are bounded by what was announced. */
static int skip_hole(struct file_arrival *arrival, uint64_t bytes, struct failure *failure)
{
	static const uint8_t zeros[FILE_BLOCK_BYTES];

	for (uint64_t left = bytes; left;) {
		size_t size = left < sizeof(zeros) ? (size_t)left : sizeof(zeros);

		XXH3_64bits_update(arrival->hash, zeros, size);
		left -= size;
	}
	arrival->offset += bytes;
	if (ftruncate(arrival->fd, (off_t)arrival->offset) < 0)
		return write_failure(arrival, errno, "cannot be written", failure);
	return 0;
}

static int finish(struct file_arrival *arrival, uint64_t checksum, struct failure *failure)
{
	const MigrateFile *file = arrival->file;
	const struct timespec times[2] = {
		{.tv_nsec = UTIME_OMIT},
		{(time_t)(file->mtime_ns / 1000000000), (long)(file->mtime_ns % 1000000000)},
	};

	if (XXH3_64bits_digest(arrival->hash) != checksum)
		return fail(failure, EBADMSG, "file-checksum", arrival->path, "try again",
			    "arrived damaged, or the old file changed meanwhile");
	/* The owner first: changing it takes the setuid bit away. */
	if (fchown(arrival->fd, file->uid, file->gid) < 0 || fchmod(arrival->fd, file->mode & 07777) < 0 ||
	    futimens(arrival->fd, times) < 0)
		return write_failure(arrival, errno, "owner, mode or time cannot be set", failure);
	if (renameat(arrival->dirfd, arrival->temporary, arrival->dirfd, arrival->name) < 0)
		return write_failure(arrival, errno, "cannot be put in its place", failure);
	arrival->complete = true;
	return 0;
}

int file_arrival_take(struct file_arrival *arrival, const FileData *data, struct failure *failure)
{
	/* What the tree has appended since it was looked at, but no disk full of nothing. */
	uint64_t limit = arrival->file->size + (arrival->file->size >> 2) + (UINT64_C(1) << 30);
	uint64_t bytes = data->has_data ? data->data.len : data->has_copy_bytes ? data->copy_bytes : data->hole_bytes;
	int r = 0;

	if (arrival->complete || data->offset != arrival->offset || bytes > limit || data->offset > limit - bytes)
		return fail(failure, EPROTO, "protocol-message", arrival->path, NULL,
			    "a part came where none was to come");
	if (data->has_data)
		r = put(arrival, data->data.data, data->data.len, failure);
	else if (data->has_copy_bytes)
		r = copy_old(arrival, data->copy_offset, data->copy_bytes, failure);
	else if (data->has_hole_bytes && data->hole_bytes)
		r = skip_hole(arrival, data->hole_bytes, failure);
	if (!r && data->last)
		r = finish(arrival, data->checksum, failure);
	return r;
}

void file_arrival_free(struct file_arrival **arrival)
{
	struct file_arrival *freed = *arrival;

	if (!freed)
		return;
	*arrival = NULL;
	if (!freed->complete && freed->fd >= 0)
		unlinkat(freed->dirfd, freed->temporary, 0);
	if (freed->fd >= 0)
		close(freed->fd);
	if (freed->old_fd >= 0)
		close(freed->old_fd);
	if (freed->dirfd >= 0)
		close(freed->dirfd);
	XXH3_freeState(freed->hash);
	free(freed->path);
	free(freed);
}
