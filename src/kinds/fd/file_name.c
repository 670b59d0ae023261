/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel knows the path of an open file (its dentry), follows renames, and adds " (deleted)" when the name was
 * removed; a file may also be called so. What it cannot tell: that a mount hides the path, or that a bind mount put
 * another file there. So the path counts only if it leads to the same inode.
 */
#include "kinds/fd/file_name.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"

#define DELETED_SUFFIX " (deleted)"
#define PROC_PREFIX "/proc/"

static bool leads_to(const struct dump_task *task, const char *path, const struct stat *stat)
{
	struct stat found;

	if (!lstat(path, &found) && found.st_dev == stat->st_dev && found.st_ino == stat->st_ino)
		return true;
	/* A task of another mount namespace sees the path below its own root. */
	_cleanup_fd_ int root = openat(task->proc_dirfd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return root >= 0 && path[0] == '/' && path[1] && !fstatat(root, path + 1, &found, AT_SYMLINK_NOFOLLOW) &&
	       found.st_dev == stat->st_dev && found.st_ino == stat->st_ino;
}

static bool has_deleted_suffix(const char *link)
{
	size_t length = strlen(link), suffix = strlen(DELETED_SUFFIX);

	return length > suffix && !strcmp(link + length - suffix, DELETED_SUFFIX);
}

/* The name that the file had before a restore could not give it, so that names do not grow from dump to dump. */
static void remove_substitute(char *name)
{
	char *last = NULL;

	for (char *at = name; (at = strstr(at, FILE_NAME_SUBSTITUTE)); at++)
		last = at;
	if (!last || last == name || last[-1] == '/')
		return;
	const char *number = last + strlen(FILE_NAME_SUBSTITUTE);
	if (*number && strspn(number, "0123456789") == strlen(number))
		*last = '\0';
}

/* A mount has a line "36 35 98:0 …" in mountinfo while it is in some directory. */
static bool is_in_no_directory(const struct dump_task *task, int fd)
{
	_cleanup_free_ char *mounts = NULL;
	struct statx found;
	char start[32];

	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &found) < 0 || !(found.stx_mask & STATX_MNT_ID) ||
	    read_text_at(task->proc_dirfd, "mountinfo", &mounts, NULL) < 0)
		return false;
	snprintf(start, sizeof(start), "\n%llu ", (unsigned long long)found.stx_mnt_id);
	return strncmp(mounts, start + 1, strlen(start + 1)) && !strstr(mounts, start);
}

static int refuse_detached(struct dump *dump)
{
	return fail(&dump->failure, EOPNOTSUPP, "file-detached-mount", NULL, "its owner must close it, or mount it",
		    "it lies in a mount that is in no directory (open_tree, fsmount, or umount -l)");
}

int file_name_find(struct dump *dump, const struct dump_task *task, int fd, int flags, const char *link,
		   const struct stat *stat, enum file_name_state *ret_state, char **ret_name)
{
	char *name = arena_strdup(&dump->arena, link);

	/* The path may lead to the same file in another mount. Such mounts are held by descriptors of this kind. */
	if ((flags & O_PATH) && is_in_no_directory(task, fd))
		return refuse_detached(dump);
	if (leads_to(task, link, stat)) {
		*ret_state = FILE_NAME_GOOD;
		*ret_name = name;
		return 0;
	}
	if (!has_deleted_suffix(link) && stat->st_nlink && is_in_no_directory(task, fd))
		return refuse_detached(dump);
	if (!has_deleted_suffix(link) && stat->st_nlink)
		return fail(&dump->failure, ENOENT, "file-hidden", NULL,
			    "its owner must close it, or unmount what hides the path",
			    "the path \"%s\" leads to another file: a mount hides the one that is open", link);
	if (has_deleted_suffix(link))
		name[strlen(name) - strlen(DELETED_SUFFIX)] = '\0';
	remove_substitute(name);
	*ret_state = FILE_NAME_GONE;
	*ret_name = name;
	return 0;
}

int file_name_check_proc(struct dump *dump, const char *link)
{
	char *end;

	if (has_deleted_suffix(link))
		return fail(&dump->failure, ESRCH, "file-proc-dead", NULL, "its owner must close it before the dump",
			    "\"%s\" belongs to a process that has ended", link);
	if (strncmp(link, PROC_PREFIX, strlen(PROC_PREFIX)))
		return 0;
	long pid = strtol(link + strlen(PROC_PREFIX), &end, 10);
	if (end == link + strlen(PROC_PREFIX) || (*end && *end != '/'))
		return 0;
	const struct dump_task *task = pid > 0 && pid <= INT32_MAX ? dump_find_task(dump, pid) : NULL;
	if (!task)
		return fail(&dump->failure, EXDEV, "file-proc-outside", NULL,
			    "dump that process too, or close the file before the dump",
			    "\"%s\" belongs to process %ld, which is outside the tree", link, pid);
	if (task->state == TASK_STATE_DEAD)
		return fail(&dump->failure, ESRCH, "file-proc-dead", NULL, "its owner must close it before the dump",
			    "\"%s\" belongs to process %ld, which has ended", link, pid);
	if (strncmp(end, "/task/", strlen("/task/")))
		return 0;
	/* Other threads come to be after the files. */
	if (strtol(end + strlen("/task/"), &end, 10) != pid)
		return fail(&dump->failure, EOPNOTSUPP, "file-proc-thread", NULL,
			    "its owner must close it before the dump",
			    "\"%s\" belongs to a thread, which will not exist when files are opened again", link);
	return 0;
}
