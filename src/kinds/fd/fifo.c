/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fifos: pipes with a name.
 *
 * In the images a fifo is two files: a regular one, which knows the name, and this one, which knows the content. The
 * content is stored once per inode. A partner outside the tree finds the restored end by the name, so it is no
 * blocker; and if it kept the fifo open, the content is still there on restore and must not come twice.
 *
 * Opening a fifo waits for a partner, or fails without one (O_NONBLOCK | O_WRONLY). So it is opened for both first,
 * and again with its own access mode through that descriptor.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/pipe_data.h"
#include "kinds/fd/regular.h"

extern const struct fd_kind fifo_kind;

struct dumped_fifo {
	struct {
		uint64_t device, inode;
	} key;
	uint32_t id;
	bool dumped;
	struct dump_file *file;
	UT_hash_handle hh, by_id;
};

struct fifo_dump {
	struct dumped_fifo *fifos, *fifos_by_id;
	struct pipe_data_writer writer;
};

static bool fifo_match(const struct target_fd *target)
{
	return S_ISFIFO(target->stat.st_mode) && strncmp(target->link, "pipe:[", 6) && !(target->flags & O_PATH);
}

static struct fifo_dump *fifo_dump_state(struct dump *dump)
{
	struct fifo_dump **state = (struct fifo_dump **)dump_kind_state(dump, &fifo_kind);

	if (!*state) {
		*state = arena_alloc(&dump->arena, sizeof(**state));
		(*state)->writer = PIPE_DATA_WRITER_INIT(IMAGE_FIFO_DATA);
	}
	return *state;
}

/* The images name a fifo by 32 bits: the inode number, unless a fifo of another file system has the same. */
static uint32_t choose_id(const struct fifo_dump *state, uint64_t inode)
{
	const struct dumped_fifo *other;
	uint32_t id = inode;

	for (;; id++) {
		HASH_FIND(by_id, state->fifos_by_id, &id, sizeof(id), other);
		if (!other)
			return id;
	}
}

static struct dumped_fifo *dumped_fifo(struct dump *dump, struct fifo_dump *state, const struct target_fd *target)
{
	struct dumped_fifo *fifo, *wanted = arena_alloc(&dump->arena, sizeof(*wanted));

	wanted->key.device = target->stat.st_dev;
	wanted->key.inode = target->stat.st_ino;
	HASH_FIND(hh, state->fifos, &wanted->key, sizeof(wanted->key), fifo);
	if (fifo)
		return fifo;
	wanted->id = choose_id(state, target->stat.st_ino);
	wanted->file = target->file;
	HASH_ADD(hh, state->fifos, key, sizeof(wanted->key), wanted);
	HASH_ADD(by_id, state->fifos_by_id, id, sizeof(wanted->id), wanted);
	return wanted;
}

static int fifo_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	struct fifo_dump *state = fifo_dump_state(dump);
	struct dumped_fifo *fifo = dumped_fifo(dump, state, target);
	uint32_t regular_id;
	int ret = regular_dump_fd(dump, target->task, target->fd, target->link, target->flags, &regular_id);

	if (ret < 0)
		return ret;
	entry->fifo = arena_message(&dump->arena, FifoEntry, fifo_entry);
	entry->fifo->id = entry->id;
	entry->fifo->pipe_id = fifo->id;
	entry->fifo->has_regf_id = true;
	entry->fifo->regf_id = regular_id;
	if (fifo->dumped || (target->flags & O_ACCMODE) == O_WRONLY)
		return 0;
	fifo->dumped = true;
	return pipe_data_dump(dump, &state->writer, fifo->id, target->fd);
}

/*
 * The tree can only write to it. If nobody outside reads it either, what lies in it still waits for a reader that
 * opens it by name.
 */
static int dump_unread(struct dump *dump, struct fifo_dump *state, const struct dumped_fifo *fifo)
{
	_cleanup_fd_ int writer = -1, reader = -1;
	int queued_bytes = 0, ret = dump_file_get(dump, fifo->file, &writer);
	struct pollfd poll_state = {.fd = writer};
	char path[48];

	if (ret < 0)
		return ret;
	if (ioctl(writer, FIONREAD, &queued_bytes) < 0 || !queued_bytes || poll(&poll_state, 1, 0) < 0 ||
	    !(poll_state.revents & POLLERR))
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", writer);
	reader = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (reader < 0)
		return fail_errno(&dump->failure, errno, "fifo-open",
				  dump_fd_name(dump, fifo->file->task, fifo->file->number), NULL,
				  "cannot open the fifo to read what lies in it");
	return pipe_data_dump(dump, &state->writer, fifo->id, reader);
}

static int fifo_dump_finish(struct dump *dump)
{
	struct fifo_dump *state = fifo_dump_state(dump);

	for (struct dumped_fifo *fifo = state->fifos; fifo; fifo = fifo->hh.next) {
		int ret = fifo->dumped ? 0 : dump_unread(dump, state, fifo);
		if (ret < 0)
			return ret;
	}
	return pipe_data_finish(&state->writer);
}

static void fifo_dump_release(struct dump *dump, bool tree_is_gone)
{
	struct fifo_dump *state = fifo_dump_state(dump);

	pipe_data_release(&state->writer);
	HASH_CLEAR(by_id, state->fifos_by_id);
	HASH_CLEAR(hh, state->fifos);
}

static int check_entry(struct restore *restore, const struct restore_file *file, uint32_t *ret_id)
{
	const FifoEntry *entry = file->entry->fifo;
	const struct restore_file *regular =
		entry && entry->has_regf_id ? restore_find_file(restore, entry->regf_id) : NULL;

	if (!regular || !regular->entry->reg)
		return fail(&restore->failure, EINVAL, "image-fifo", NULL, NULL,
			    "files.img: fifo %u has no file that names it", file->id);
	*ret_id = entry->pipe_id;
	return 0;
}

/* kind_data is the content that the file brings back: only the first one of a fifo has it. */
static int fifo_prepare(struct restore *restore)
{
	struct pipe_data *contents = NULL, *data;
	uint32_t id;
	int ret = pipe_data_prepare(restore, IMAGE_FIFO_DATA, &contents);

	for (size_t i = 0; i < restore->file_count && !ret; i++) {
		struct restore_file *file = restore->files[i];
		if (file->kind != &fifo_kind)
			continue;
		ret = check_entry(restore, file, &id);
		if (ret)
			break;
		HASH_FIND(hh, contents, &id, sizeof(id), data);
		if (data)
			HASH_DEL(contents, data);
		file->kind_data = data;
	}
	HASH_CLEAR(hh, contents);
	return ret;
}

static int fill(struct restore *restore, const struct pipe_data *data, uint32_t flags, int fd)
{
	int queued_bytes;

	if (ioctl(fd, FIONREAD, &queued_bytes) < 0)
		return fail_errno(&restore->failure, errno, "fifo-open", NULL, NULL, "cannot look into the fifo");
	if (queued_bytes) {
		log_info("fifo %u: a process kept it open, its %d bytes are still there", data->pipe_id, queued_bytes);
		return 0;
	}
	return pipe_data_restore(restore, IMAGE_FIFO_DATA, data, fd, flags & O_DIRECT);
}

static int fifo_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	uint32_t regular_id = file->entry->fifo->regf_id;
	uint32_t flags = restore_find_file(restore, regular_id)->entry->reg->flags;
	_cleanup_fd_ int both = -1, fd = -1;
	char path[48];
	int ret = regular_open(restore, regular_id, O_RDWR | O_NONBLOCK | O_CLOEXEC, &both);

	if (ret < 0)
		return ret;
	if (file->kind_data)
		ret = fill(restore, file->kind_data, flags, both);
	if (ret < 0)
		return ret;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", both);
	fd = open(path, (flags & (O_ACCMODE | O_LARGEFILE)) | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "fifo-open", NULL, NULL, "cannot open the fifo");
	ret = status_flags_restore(restore, fd, flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

const struct fd_kind fifo_kind = {
	.name = "fifo",
	.type = FD_TYPES__FIFO,
	.match = fifo_match,
	.dump = fifo_dump,
	.dump_finish = fifo_dump_finish,
	.dump_release = fifo_dump_release,
	.prepare = fifo_prepare,
	.open = fifo_open,
};
