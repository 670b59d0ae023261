/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Working directory, root directory and file mode mask of a process.
 *
 * The directories are opened through /proc, which follows them even where the path now leads elsewhere, and dumped
 * as files. At restore the root changes first: changing it leaves the working directory alone, which may lie outside.
 */
#include "kinds/task/fs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "kinds/fd/regular.h"
#include "kinds/task/process_facts.h"
#include "kinds/task/thread_status.h"

enum { UMASK_MAX = 0777 };

static int dump_directory(struct dump *dump, struct dump_task *task, enum process_link which, const char *name,
			  const char *what, uint32_t *ret_id)
{
	const struct process_link_fact *fact = &task->facts->links[which];
	_cleanup_free_ char *link = NULL;

	if (!fact->error && regular_is_known(dump, &fact->stat, fact->target, O_RDONLY, ret_id))
		return 0;
	_cleanup_fd_ int fd = openat(task->proc_dirfd, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int error = fd < 0 ? -errno : read_link_at(task->proc_dirfd, name, &link);

	if (error < 0)
		return fail_errno(&dump->failure, error, "task-directory", dump_task_name(dump, task), NULL,
				  "cannot open its %s", what);
	error = regular_dump_fd(dump, task, fd, link, O_RDONLY, ret_id);
	return error ? fail_in(&dump->failure, "%s: its %s", dump_task_name(dump, task), what) : 0;
}

int fs_dump(struct dump *dump, struct dump_task *task)
{
	FsEntry *entry = arena_message(&dump->arena, FsEntry, fs_entry);
	const struct thread_status *status;
	int error = thread_status_get(dump, &task->threads[0], &status);

	if (!error)
		error = dump_directory(dump, task, PROCESS_CWD, "cwd", "working directory", &entry->cwd_id);
	if (!error)
		error = dump_directory(dump, task, PROCESS_ROOT, "root", "root directory", &entry->root_id);
	if (error < 0)
		return error;
	entry->has_umask = true;
	entry->umask = status->umask;
	task->fs = entry;
	return 0;
}

/* Most tasks have the root that criu has; changing it needs a capability that they may lack. */
static bool is_own_root(int fd)
{
	struct statx own, wanted;

	return !statx(AT_FDCWD, "/", 0, STATX_INO | STATX_MNT_ID, &own) &&
	       !statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_MNT_ID, &wanted) && own.stx_ino == wanted.stx_ino &&
	       own.stx_dev_major == wanted.stx_dev_major && own.stx_dev_minor == wanted.stx_dev_minor &&
	       own.stx_mnt_id == wanted.stx_mnt_id;
}

static int enter_root(struct restore *restore, int fd)
{
	if (is_own_root(fd))
		return 0;
	if (fchdir(fd) < 0 || chroot(".") < 0)
		return fail_errno(&restore->failure, errno, "task-directory", restore_task_name(restore, restore->self),
				  NULL, "cannot change its root directory");
	return 0;
}

int fs_restore(struct restore *restore)
{
	const FsEntry *entry = restore->self->fs;
	_cleanup_fd_ int directory = -1, root = -1;

	if (!entry)
		return 0;
	int error = regular_open(restore, entry->cwd_id, O_PATH | O_DIRECTORY | O_CLOEXEC, &directory);
	if (!error)
		error = regular_open(restore, entry->root_id, O_PATH | O_DIRECTORY | O_CLOEXEC, &root);
	if (error < 0)
		return fail_in(&restore->failure, "%s: its working or root directory",
			       restore_task_name(restore, restore->self));
	error = enter_root(restore, root);
	if (error < 0)
		return error;
	if (fchdir(directory) < 0)
		return fail_errno(&restore->failure, errno, "task-directory", restore_task_name(restore, restore->self),
				  NULL, "cannot change its working directory");
	if (entry->has_umask)
		umask(entry->umask & UMASK_MAX);
	return 0;
}
