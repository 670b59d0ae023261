/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies in a pipe can be looked at without taking it out: tee() links the pipe's buffers into a second pipe. One
 * such pipe of ours serves all pipes of a dump, so a pipe costs four system calls and no allocation.
 *
 * A pipe in packet mode (O_DIRECT) keeps the boundaries of writes, and tee() keeps them too: a read returns one
 * packet at most. So a content that takes several reads is stored as several entries of the same pipe, one for each
 * packet, and is written back with as many writes.
 */
#include "kinds/fd/pipe_data.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"
#include "pipe-data.pb-c.h"

#define DEFAULT_CAPACITY_BYTES 65536
#define RESTORE_BUFFER_BYTES 65536

static int open_writer(struct dump *dump, struct pipe_data_writer *writer)
{
	int ret;

	if (writer->image)
		return 0;
	if (pipe2(writer->scratch, O_CLOEXEC | O_NONBLOCK) < 0)
		return fail_errno(&dump->failure, errno, "pipe-data", NULL, NULL, "cannot make a pipe");
	writer->scratch_bytes = fcntl(writer->scratch[1], F_GETPIPE_SZ);
	ret = image_create(dump->images_dirfd, &dump->failure, writer->kind, 0, &writer->image);
	return ret < 0 ? ret : 0;
}

/* The copy needs as many slots as the original: a slot may hold a single byte. */
static int grow_scratch(struct dump *dump, struct pipe_data_writer *writer, int capacity_bytes)
{
	if (writer->scratch_bytes >= capacity_bytes)
		return 0;
	if (fcntl(writer->scratch[1], F_SETPIPE_SZ, capacity_bytes) < 0)
		return fail_errno(&dump->failure, errno, "pipe-data", NULL,
				  "raise /proc/sys/fs/pipe-max-size or give criu CAP_SYS_RESOURCE",
				  "cannot make a pipe of %d bytes to copy this one's content", capacity_bytes);
	writer->scratch_bytes = capacity_bytes;
	return 0;
}

static void grow_buffer(struct pipe_data_writer *writer, size_t bytes)
{
	if (writer->buffer_bytes >= bytes)
		return;
	writer->buffer = xrealloc_array(writer->buffer, bytes, 1);
	writer->buffer_bytes = bytes;
}

static int write_entry(struct pipe_data_writer *writer, uint32_t pipe_id, uint32_t capacity_bytes, size_t bytes)
{
	PipeDataEntry entry = PIPE_DATA_ENTRY__INIT;
	int ret;

	entry.pipe_id = pipe_id;
	entry.bytes = bytes;
	entry.has_size = true;
	entry.size = capacity_bytes;
	ret = image_write(writer->image, &entry.base);
	if (!ret && bytes)
		ret = image_write_raw(writer->image, writer->buffer, bytes);
	return ret;
}

/* Moves @bytes from the scratch pipe into the image. */
static int drain_scratch(struct dump *dump, struct pipe_data_writer *writer, uint32_t pipe_id, int capacity_bytes,
			 size_t bytes)
{
	while (bytes) {
		ssize_t got = read(writer->scratch[0], writer->buffer, bytes);
		if (got <= 0)
			return fail_errno(&dump->failure, got ? errno : EIO, "pipe-data", NULL, NULL,
					  "cannot read the copy of the pipe's content");
		int ret = write_entry(writer, pipe_id, capacity_bytes, got);
		if (ret)
			return ret;
		bytes -= got;
	}
	return 0;
}

int pipe_data_dump(struct dump *dump, struct pipe_data_writer *writer, uint32_t pipe_id, int fd)
{
	int capacity_bytes = fcntl(fd, F_GETPIPE_SZ), queued_bytes, ret;

	if (capacity_bytes < 0 || ioctl(fd, FIONREAD, &queued_bytes) < 0)
		return fail_errno(&dump->failure, errno, "pipe-data", NULL, NULL, "cannot ask for the pipe's size");
	if (dump->only_explain || (!queued_bytes && capacity_bytes == DEFAULT_CAPACITY_BYTES))
		return 0;
	ret = open_writer(dump, writer);
	if (!ret && !queued_bytes)
		return write_entry(writer, pipe_id, capacity_bytes, 0);
	if (!ret)
		ret = grow_scratch(dump, writer, capacity_bytes);
	if (ret)
		return ret;
	ssize_t copied = tee(fd, writer->scratch[1], queued_bytes, SPLICE_F_NONBLOCK);
	if (copied < 0)
		return fail_errno(&dump->failure, errno, "pipe-data", NULL, NULL, "cannot copy the pipe's content");
	if (copied != queued_bytes)
		return fail(&dump->failure, EIO, "pipe-data", NULL, NULL,
			    "only %zd of the pipe's %d bytes could be copied", copied, queued_bytes);
	grow_buffer(writer, copied);
	return drain_scratch(dump, writer, pipe_id, capacity_bytes, copied);
}

int pipe_data_finish(struct pipe_data_writer *writer)
{
	return writer->image ? image_close(&writer->image) : 0;
}

void pipe_data_release(struct pipe_data_writer *writer)
{
	if (writer->image)
		image_close(&writer->image);
	close_fd_pointer(&writer->scratch[0]);
	close_fd_pointer(&writer->scratch[1]);
	writer->scratch[0] = writer->scratch[1] = -1;
	writer->scratch_bytes = 0;
	free(writer->buffer);
	writer->buffer = NULL;
	writer->buffer_bytes = 0;
}

static void add_chunk(struct restore *restore, struct pipe_data **table, const PipeDataEntry *entry, off_t offset)
{
	struct pipe_data_chunk *chunk;
	struct pipe_data *data;

	HASH_FIND(hh, *table, &entry->pipe_id, sizeof(entry->pipe_id), data);
	if (!data) {
		data = arena_alloc(&restore->arena, sizeof(*data));
		data->pipe_id = entry->pipe_id;
		HASH_ADD(hh, *table, pipe_id, sizeof(data->pipe_id), data);
	}
	if (entry->has_size)
		data->capacity_bytes = entry->size;
	if (!entry->bytes)
		return;
	chunk = arena_alloc(&restore->arena, sizeof(*chunk));
	chunk->offset = offset;
	chunk->bytes = entry->bytes;
	if (data->last)
		data->last->next = chunk;
	else
		data->first = chunk;
	data->last = chunk;
}

/* Returns 1 for an entry, 0 at the end, or a failure. */
static int read_entry(struct restore *restore, struct image *image, off_t image_bytes, struct pipe_data **table)
{
	ProtobufCMessage *message;
	int ret = image_read(image, &message);

	if (ret <= 0)
		return ret;
	const PipeDataEntry *entry = (const PipeDataEntry *)message;
	off_t offset = image_offset(image);
	if (entry->bytes > image_bytes - offset)
		ret = fail(&restore->failure, EINVAL, "image-truncated", NULL, NULL,
			   "pipe %u: the image ends before its %u bytes", entry->pipe_id, entry->bytes);
	else
		add_chunk(restore, table, entry, offset);
	if (ret > 0 && image_seek(image, offset + entry->bytes) < 0)
		ret = fail(&restore->failure, EIO, "image-read", NULL, NULL, "cannot move behind the bytes of pipe %u",
			   entry->pipe_id);
	image_message_free(message);
	return ret;
}

int pipe_data_prepare(struct restore *restore, enum image_kind kind, struct pipe_data **ret_table)
{
	struct pipe_data *table = NULL;
	struct image *image;
	struct stat stat;
	int ret = restore_image_open(restore, kind, 0, &image);

	if (ret == -ENOENT && !failure_is_set(&restore->failure)) {
		*ret_table = NULL;
		return 0;
	}
	if (ret < 0)
		return ret;
	if (fstat(image_fd(image), &stat) < 0)
		ret = fail_errno(&restore->failure, errno, "image-read", NULL, NULL, "cannot ask for its size");
	else
		do
			ret = read_entry(restore, image, stat.st_size, &table);
		while (ret > 0);
	image_close(&image);
	if (ret < 0) {
		HASH_CLEAR(hh, table);
		return fail_in(&restore->failure, "%s", image_descriptions[kind].pattern);
	}
	*ret_table = table;
	return 0;
}

static void set_capacity(const struct pipe_data *data, int fd)
{
	int capacity_bytes = fcntl(fd, F_GETPIPE_SZ);

	if (!data->capacity_bytes || data->capacity_bytes == (uint32_t)capacity_bytes)
		return;
	if (data->capacity_bytes > INT32_MAX || fcntl(fd, F_SETPIPE_SZ, (int)data->capacity_bytes) < 0)
		log_warn("pipe %u: its capacity stays %d bytes instead of %u: %m", data->pipe_id, capacity_bytes,
			 data->capacity_bytes);
}

static int restore_chunk(struct restore *restore, int image_file, uint32_t pipe_id, const struct pipe_data_chunk *chunk,
			 int fd, char *buffer)
{
	for (uint32_t done = 0; done < chunk->bytes;) {
		size_t part = chunk->bytes - done < RESTORE_BUFFER_BYTES ? chunk->bytes - done : RESTORE_BUFFER_BYTES;
		int ret = pread_full(image_file, buffer, part, chunk->offset + done);
		if (ret < 0)
			return fail_errno(&restore->failure, ret, "image-read", NULL, NULL,
					  "pipe %u: cannot read its content from the image", pipe_id);
		ret = write_full(fd, buffer, part);
		if (ret < 0)
			return fail_errno(&restore->failure, ret, "pipe-data", NULL,
					  "raise /proc/sys/fs/pipe-max-size or give criu CAP_SYS_RESOURCE",
					  "pipe %u: its content of %u bytes does not fit", pipe_id, chunk->bytes);
		done += part;
	}
	return 0;
}

int pipe_data_restore(struct restore *restore, enum image_kind kind, const struct pipe_data *data, int fd, bool packets)
{
	_cleanup_free_ char *buffer = NULL;
	_cleanup_fd_ int image_file = -1;
	char name[64];
	int ret = 0;

	set_capacity(data, fd);
	if (!data->first)
		return 0;
	if ((packets || data->first->next) && fcntl(fd, F_SETFL, O_NONBLOCK | O_DIRECT) < 0)
		return fail_errno(&restore->failure, errno, "pipe-data", NULL, NULL, "pipe %u: cannot write packets",
				  data->pipe_id);
	image_file = openat(restore->images_dirfd, image_name(kind, 0, name, sizeof(name)), O_RDONLY | O_CLOEXEC);
	if (image_file < 0)
		return fail_errno(&restore->failure, errno, "image-read", name, NULL, "cannot open");
	buffer = xrealloc_array(NULL, RESTORE_BUFFER_BYTES, 1);
	for (const struct pipe_data_chunk *chunk = data->first; chunk && !ret; chunk = chunk->next)
		ret = restore_chunk(restore, image_file, data->pipe_id, chunk, fd, buffer);
	return ret;
}
