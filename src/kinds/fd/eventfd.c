/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event counters. The counter and whether it counts like a semaphore are told only by fdinfo. The images have no
 * field for the latter: it lies in bit 0 of the flags, which F_GETFL never sets here (the access mode is O_RDWR) and
 * which other readers of the format give to F_SETFL, where it means nothing.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/fd.h"
#include "kernel/proc.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"

static bool eventfd_match(const struct target_fd *target)
{
	return !strcmp(target->link, "anon_inode:[eventfd]");
}

static int eventfd_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	uint64_t counter, semaphore = 0;
	int ret = fdinfo_read(dump, target->fd, &text);

	if (!ret)
		ret = fdinfo_number(dump, text, "eventfd-count", 16, &counter);
	/* Kernels before 6.5 do not tell; most counters are not semaphores. */
	if (!ret && proc_field(text, "eventfd-semaphore"))
		ret = fdinfo_number(dump, text, "eventfd-semaphore", 10, &semaphore);
	if (ret < 0)
		return ret;
	entry->efd = arena_message(&dump->arena, EventfdFileEntry, eventfd_file_entry);
	entry->efd->id = entry->id;
	entry->efd->flags = target->flags | (semaphore ? EFD_SEMAPHORE : 0);
	entry->efd->fown = target->fown;
	entry->efd->counter = counter;
	return 0;
}

static int eventfd_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const EventfdFileEntry *entry = file->entry->efd;
	_cleanup_fd_ int fd = -1;
	int ret;

	if (!entry)
		return fail(&restore->failure, EINVAL, "image-eventfd", NULL, NULL,
			    "files.img: file %u has no eventfd entry", file->id);
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (entry->flags & EFD_SEMAPHORE));
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "eventfd-open", NULL, NULL, "cannot make an eventfd");
	if (entry->counter && write(fd, &entry->counter, sizeof(entry->counter)) != sizeof(entry->counter))
		return fail_errno(&restore->failure, errno, "eventfd-open", NULL, NULL,
				  "cannot set the counter of the eventfd to %" PRIu64, entry->counter);
	ret = status_flags_restore(restore, fd, entry->flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

const struct fd_kind eventfd_kind = {
	.name = "eventfd",
	.type = FD_TYPES__EVENTFD,
	.match = eventfd_match,
	.dump = eventfd_dump,
	.open = eventfd_open,
};
