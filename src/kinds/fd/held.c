/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/fd/held.h"

#include <fcntl.h>

#include "base/fd.h"

/* Tables are sorted, so one look at the end of each is enough. */
static int first_free_number(const struct restore *restore)
{
	int highest = 2;

	for (size_t i = 0; i < restore->task_count; i++) {
		const struct restore_task *task = restore->tasks[i];
		if (task->fd_count && task->fds[task->fd_count - 1].number > highest)
			highest = task->fds[task->fd_count - 1].number;
	}
	return highest + 1;
}

int held_keep(struct restore *restore, int *fd)
{
	int moved = fcntl(*fd, F_DUPFD_CLOEXEC, first_free_number(restore));

	if (moved < 0)
		return fail_errno(&restore->failure, errno, "fd-limit", NULL,
				  "raise the limit of open files (ulimit -n)",
				  "cannot keep a descriptor above those of the tree");
	close(*fd);
	*fd = moved;
	return 0;
}

int held_open(int held, int flags)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", held);
	int fd = open(path, (flags & ~O_NOFOLLOW) | O_CLOEXEC | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}
