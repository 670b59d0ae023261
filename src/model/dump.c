/* SPDX-License-Identifier: Apache-2.0 */
#include "model/dump.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

const char *dump_task_name(struct dump *dump, const struct dump_task *task)
{
	return arena_printf(&dump->arena, "task %d (%s)", task->pid, task->comm);
}

const char *dump_fd_name(struct dump *dump, const struct dump_task *task, int number)
{
	return arena_printf(&dump->arena, "task %d (%s): fd %d", task->pid, task->comm, number);
}

int dump_file_get(struct dump *dump, const struct dump_file *file, int *ret_fd)
{
	int fd = file->kept_fd >= 0 ? fcntl(file->kept_fd, F_DUPFD_CLOEXEC, 0)
				    : (int)syscall(SYS_pidfd_getfd, file->task->pidfd, file->number, 0);

	if (fd < 0)
		return fail_errno(&dump->failure, errno, "fd-get", dump_fd_name(dump, file->task, file->number), NULL,
				  "cannot take a copy of the descriptor");
	*ret_fd = fd;
	return 0;
}

struct dump_file *dump_find_fd(const struct dump *dump, const struct dump_task *task, int number)
{
	size_t low = 0, high = task->fd_count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (task->fds[middle].number == number)
			return task->fds[middle].file;
		if (task->fds[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

struct dump_task *dump_find_task(const struct dump *dump, pid_t pid)
{
	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->pid == pid)
			return dump->tasks[i];
	return NULL;
}

struct dump_file *dump_file_add(struct dump *dump, const struct fd_kind *kind)
{
	struct dump_file *file = arena_alloc(&dump->arena, sizeof(*file));

	ARRAY_GROW(dump->files, dump->file_count, dump->file_capacity);
	dump->files[dump->file_count++] = file;
	file->id = dump->file_count;
	file->kind = kind;
	file->number = file->kept_fd = -1;
	file->entry = arena_message(&dump->arena, FileEntry, file_entry);
	file->entry->id = file->id;
	return file;
}

int dump_blocked(struct dump *dump)
{
	if (!dump->only_explain)
		return -dump->failure.error;
	if (dump->options->blocker)
		dump->options->blocker(dump->options->context, &dump->failure);
	dump->blocker_count++;
	failure_clear(&dump->failure);
	return 0;
}
