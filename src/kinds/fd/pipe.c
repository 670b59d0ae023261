/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes.
 *
 * A pipe is one object with any number of open ends; the inode number names it (pipe_id). Its content is taken when
 * the first end that can be read is seen. An end whose other end nobody in the tree holds is only good if nobody
 * outside holds it either, else its partner would see the pipe break: the kernel does not list holders, but poll()
 * says POLLERR to a writer without readers and POLLHUP to a reader without writers.
 *
 * On restore the owner of the file with the lowest id makes the pipe and fills it. The two ends that pipe() gives go to
 * the first files of their access mode, all others reopen the pipe through /proc/PID/fd/N with their own (which leaves
 * O_LARGEFILE in their flags, so files that have it never get one of the two). No end stays that the images do not
 * know: the last writer's close is seen as the end of the file.
 */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/pipe_data.h"

extern const struct fd_kind pipe_kind;

struct dumped_pipe {
	uint32_t id;
	struct dump_file *reader, *writer; /* an end of each access mode; the same file if it is open for both */
	UT_hash_handle hh;
};

struct pipe_dump {
	struct dumped_pipe *pipes;
	struct pipe_data_writer writer;
};

static bool pipe_match(const struct target_fd *target)
{
	return S_ISFIFO(target->stat.st_mode) && !strncmp(target->link, "pipe:[", 6) && !(target->flags & O_PATH);
}

static struct pipe_dump *pipe_dump_state(struct dump *dump)
{
	struct pipe_dump **state = (struct pipe_dump **)dump_kind_state(dump, &pipe_kind);

	if (!*state) {
		*state = arena_alloc(&dump->arena, sizeof(**state));
		(*state)->writer = PIPE_DATA_WRITER_INIT(IMAGE_PIPES_DATA);
	}
	return *state;
}

static struct dumped_pipe *dumped_pipe(struct dump *dump, struct pipe_dump *state, uint32_t id)
{
	struct dumped_pipe *pipe;

	HASH_FIND(hh, state->pipes, &id, sizeof(id), pipe);
	if (pipe)
		return pipe;
	pipe = arena_alloc(&dump->arena, sizeof(*pipe));
	pipe->id = id;
	HASH_ADD(hh, state->pipes, id, sizeof(pipe->id), pipe);
	return pipe;
}

static int pipe_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	struct pipe_dump *state = pipe_dump_state(dump);
	struct dumped_pipe *pipe = dumped_pipe(dump, state, target->stat.st_ino);
	int access_mode = target->flags & O_ACCMODE;
	bool first_reader = !pipe->reader && access_mode != O_WRONLY;

	entry->pipe = arena_message(&dump->arena, PipeEntry, pipe_entry);
	entry->pipe->id = entry->id;
	entry->pipe->pipe_id = pipe->id;
	entry->pipe->flags = target->flags;
	entry->pipe->fown = target->fown;
	if (access_mode != O_RDONLY)
		pipe->writer = target->file;
	if (access_mode != O_WRONLY)
		pipe->reader = target->file;
	return first_reader ? pipe_data_dump(dump, &state->writer, pipe->id, target->fd) : 0;
}

static bool process_has_pipe(int proc_dirfd, const char *link)
{
	_cleanup_free_ int *numbers = NULL;
	size_t count = 0;

	if (proc_list_numbers(proc_dirfd, "fd", &numbers, &count) < 0)
		return false;
	for (size_t i = 0; i < count; i++) {
		_cleanup_free_ char *found = NULL;
		char path[32];
		snprintf(path, sizeof(path), "fd/%d", numbers[i]);
		if (!read_link_at(proc_dirfd, path, &found) && !strcmp(found, link))
			return true;
	}
	return false;
}

/* Who outside the tree has the pipe; only to explain a failure. Returns a name for people in the arena. */
static const char *name_outside_holder(struct dump *dump, uint32_t pipe_id)
{
	_cleanup_free_ int *pids = NULL;
	size_t count = 0;
	char link[32];

	snprintf(link, sizeof(link), "pipe:[%u]", pipe_id);
	if (proc_list_numbers(AT_FDCWD, "/proc", &pids, &count) < 0)
		return "a process";
	for (size_t i = 0; i < count; i++) {
		struct proc_stat stat;
		if (pids[i] == getpid() || dump_find_task(dump, pids[i]))
			continue;
		_cleanup_fd_ int proc_dirfd = proc_open(pids[i]);
		if (proc_dirfd >= 0 && process_has_pipe(proc_dirfd, link) && !proc_read_stat(proc_dirfd, "stat", &stat))
			return arena_printf(&dump->arena, "pid %d (%s)", pids[i], stat.comm);
	}
	return "a process that criu cannot see";
}

/* One end is missing in the tree: has it been closed, or is it outside? */
static int check_missing_end(struct dump *dump, const struct dumped_pipe *pipe)
{
	const struct dump_file *file = pipe->reader ? pipe->reader : pipe->writer;
	_cleanup_fd_ int fd = -1;
	int ret = dump_file_get(dump, file, &fd);

	if (ret < 0)
		return ret;
	struct pollfd state = {.fd = fd, .events = pipe->reader ? POLLIN : POLLOUT};
	if (poll(&state, 1, 0) < 0)
		return fail_errno(&dump->failure, errno, "pipe-poll", dump_fd_name(dump, file->task, file->number),
				  NULL, "cannot ask for the state of the pipe");
	if (state.revents & (pipe->reader ? POLLHUP : POLLERR))
		return 0;
	return fail(&dump->failure, EBUSY, "fd-pipe-outside", dump_fd_name(dump, file->task, file->number),
		    "start the program with its input and output redirected to files, or dump that process too",
		    "the %s end of the pipe (pipe:[%u]) is outside the tree, in %s", pipe->reader ? "write" : "read",
		    pipe->id, name_outside_holder(dump, pipe->id));
}

static int pipe_dump_finish(struct dump *dump)
{
	struct pipe_dump *state = pipe_dump_state(dump);

	for (struct dumped_pipe *pipe = state->pipes; pipe; pipe = pipe->hh.next) {
		int ret = pipe->reader && pipe->writer ? 0 : check_missing_end(dump, pipe);
		if (ret < 0)
			ret = dump_blocked(dump);
		if (ret < 0)
			return ret;
	}
	return pipe_data_finish(&state->writer);
}

static void pipe_dump_release(struct dump *dump, bool tree_is_gone)
{
	struct pipe_dump *state = pipe_dump_state(dump);

	pipe_data_release(&state->writer);
	HASH_CLEAR(hh, state->pipes);
}

struct restored_pipe {
	uint32_t id;
	struct restore_file *maker;
	bool has_reader, has_writer;
	struct restore_file *ends[2]; /* who gets the reader and the writer that pipe() gives */
	int kept[2];                  /* one of them, parked until this task opens its file */
	const struct pipe_data *data;
	UT_hash_handle hh;
};

static int add_end(struct restore *restore, struct restored_pipe **pipes, struct pipe_data *contents,
		   struct restore_file *file)
{
	const PipeEntry *entry = file->entry->pipe;
	struct restored_pipe *pipe;

	if (!entry)
		return fail(&restore->failure, EINVAL, "image-pipe", NULL, NULL, "files.img: file %u has no pipe entry",
			    file->id);
	HASH_FIND(hh, *pipes, &entry->pipe_id, sizeof(entry->pipe_id), pipe);
	if (!pipe) {
		struct pipe_data *data;
		pipe = arena_alloc(&restore->arena, sizeof(*pipe));
		pipe->id = entry->pipe_id;
		pipe->kept[0] = pipe->kept[1] = -1;
		HASH_FIND(hh, contents, &pipe->id, sizeof(pipe->id), data);
		pipe->data = data;
		HASH_ADD(hh, *pipes, id, sizeof(pipe->id), pipe);
	}
	/* An end in flight in a socket's queue is made late, so it makes the pipe only if there is no other. */
	if (!pipe->maker || (!pipe->maker->user_count && file->user_count))
		pipe->maker = file;
	if ((entry->flags & O_ACCMODE) != O_RDWR && !(entry->flags & O_LARGEFILE)) {
		struct restore_file **end = &pipe->ends[(entry->flags & O_ACCMODE) == O_WRONLY];
		if (!*end || (!(*end)->user_count && file->user_count))
			*end = file;
	}
	pipe->has_reader |= (entry->flags & O_ACCMODE) != O_WRONLY;
	pipe->has_writer |= (entry->flags & O_ACCMODE) != O_RDONLY;
	file->kind_data = pipe;
	return 0;
}

static int pipe_prepare(struct restore *restore)
{
	struct pipe_data *contents = NULL;
	struct restored_pipe *pipes = NULL;
	int ret = pipe_data_prepare(restore, IMAGE_PIPES_DATA, &contents);

	for (size_t i = 0; i < restore->file_count && !ret; i++)
		if (restore->files[i]->kind == &pipe_kind)
			ret = add_end(restore, &pipes, contents, restore->files[i]);
	for (struct restored_pipe *pipe = pipes; pipe; pipe = pipe->hh.next)
		if (!pipe->has_reader || !pipe->has_writer)
			log_info("pipe %u: its %s end is not in the images: it comes back closed", pipe->id,
				 pipe->has_reader ? "write" : "read");
	HASH_CLEAR(hh, pipes);
	HASH_CLEAR(hh, contents);
	return ret;
}

/* /proc/self/fd/N can be opened by who owns the pipe: it belongs to whom the task runs as, as if that had made it. */
static void give_to_task(struct restore *restore, const struct restored_pipe *pipe, int fd)
{
	const ThreadCoreEntry *thread = restore->self ? restore->self->core->thread_core : NULL;
	const CredsEntry *creds = thread ? thread->creds : NULL;

	if (creds && (creds->fsuid || creds->fsgid) && fchown(fd, creds->fsuid, creds->fsgid) < 0)
		log_warn("pipe %u: cannot be given to user %u: %m", pipe->id, creds->fsuid);
}

static int reopen(struct restore *restore, const char *path, uint32_t flags, int *ret_fd)
{
	/* A pipe of pipe() never waits for its other end when it is opened. */
	int fd = open(path, (flags & O_ACCMODE) | O_CLOEXEC);

	if (fd < 0)
		return fail_errno(&restore->failure, errno, "pipe-open", NULL, NULL, "cannot open the pipe through %s",
				  path);
	*ret_fd = fd;
	return 0;
}

/* Keeps an end for the file that gets it. */
static int give_end(struct restore *restore, struct restored_pipe *pipe, int end, int *fd)
{
	const struct restore_file *file = pipe->ends[end];
	int ret;

	if (!file->user_count || file->users[0]->task != restore->self)
		return restore_offer(restore, file->id, TAKE_FD(*fd));
	ret = restore_park(restore, fd);
	if (!ret)
		pipe->kept[end] = TAKE_FD(*fd);
	return ret;
}

static int make_pipe(struct restore *restore, struct restored_pipe *pipe, uint32_t flags, int *ret_fd)
{
	_cleanup_fd_ int reader = -1, writer = -1, own = -1;
	int ends[2], ret = 0;
	char path[48];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return fail_errno(&restore->failure, errno, "pipe-open", NULL, NULL, "cannot make a pipe");
	reader = ends[0];
	writer = ends[1];
	give_to_task(restore, pipe, reader);
	if (pipe->data)
		ret = pipe_data_restore(restore, IMAGE_PIPES_DATA, pipe->data, writer, flags & O_DIRECT);
	if (!ret && pipe->maker != pipe->ends[0] && pipe->maker != pipe->ends[1]) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", reader);
		ret = reopen(restore, path, flags, &own);
	}
	for (int end = 0; end < 2 && !ret; end++) {
		int *fd = end ? &writer : &reader;
		if (pipe->ends[end] == pipe->maker)
			own = TAKE_FD(*fd);
		else if (pipe->ends[end])
			ret = give_end(restore, pipe, end, fd);
	}
	if (!ret)
		*ret_fd = TAKE_FD(own);
	return ret;
}

static int take_end(struct restore *restore, struct restored_pipe *pipe, const struct restore_file *file, int *ret_fd)
{
	int end = file == pipe->ends[1];

	if (pipe->kept[end] < 0)
		return restore_take_offer(restore, file->id, ret_fd);
	*ret_fd = TAKE_FD(pipe->kept[end]);
	return 0;
}

static int pipe_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	struct restored_pipe *pipe = file->kind_data;
	uint32_t flags = file->entry->pipe->flags;
	_cleanup_fd_ int fd = -1;
	char path[64];
	int ret;

	if (pipe->maker == file) {
		ret = make_pipe(restore, pipe, flags, &fd);
	} else if (file == pipe->ends[0] || file == pipe->ends[1]) {
		ret = take_end(restore, pipe, file, &fd);
	} else {
		ret = restore_file_path(restore, pipe->maker->id, path, sizeof(path));
		if (!ret)
			ret = reopen(restore, path, flags, &fd);
	}
	if (!ret)
		ret = status_flags_restore(restore, fd, flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

const struct fd_kind pipe_kind = {
	.name = "pipe",
	.type = FD_TYPES__PIPE,
	.match = pipe_match,
	.dump = pipe_dump,
	.dump_finish = pipe_dump_finish,
	.dump_release = pipe_dump_release,
	.prepare = pipe_prepare,
	.open = pipe_open,
};
