/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/fd/held.h"

#include <fcntl.h>

#include "base/fd.h"

int held_keep(struct restore *restore, int *fd)
{
	int moved = fcntl(*fd, F_DUPFD_CLOEXEC, restore->above_tables);

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
