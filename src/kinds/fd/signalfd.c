/* SPDX-License-Identifier: Apache-2.0 */
/* Signals as a descriptor. Only fdinfo tells the mask; the signals themselves are pending in the tasks. */
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"

static bool signalfd_match(const struct target_fd *target)
{
	return !strcmp(target->link, "anon_inode:[signalfd]");
}

static int signalfd_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	uint64_t mask;
	int ret = fdinfo_read(dump, target->fd, &text);

	if (!ret)
		ret = fdinfo_number(dump, text, "sigmask", 16, &mask);
	if (ret < 0)
		return ret;
	entry->sgfd = arena_message(&dump->arena, SignalfdEntry, signalfd_entry);
	entry->sgfd->id = entry->id;
	entry->sgfd->flags = target->flags;
	entry->sgfd->fown = target->fown;
	entry->sgfd->sigmask = mask;
	return 0;
}

static int signalfd_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const SignalfdEntry *entry = file->entry->sgfd;
	_cleanup_fd_ int fd = -1;
	int ret;

	if (!entry)
		return fail(&restore->failure, EINVAL, "image-signalfd", NULL, NULL,
			    "files.img: file %u has no signalfd entry", file->id);
	/* The kernel's mask of 64 signals, not the C library's larger one. */
	fd = syscall(SYS_signalfd4, -1, &entry->sigmask, sizeof(entry->sigmask), SFD_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "signalfd-open", NULL, NULL, "cannot make a signalfd");
	ret = status_flags_restore(restore, fd, entry->flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

const struct fd_kind signalfd_kind = {
	.name = "signalfd",
	.type = FD_TYPES__SIGNALFD,
	.match = signalfd_match,
	.dump = signalfd_dump,
	.open = signalfd_open,
};
