/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors for processes. One for a process of the tree is opened again by its pid: all pids exist before the
 * first file is opened. One for a process that is gone is made with a process that ends at once. One for a process
 * outside the tree has no meaning on restore.
 */
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "kernel/proc.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"

/* PIDFD_NONBLOCK and PIDFD_THREAD are these flags of open(). */
#define PIDFD_FLAGS (O_NONBLOCK | O_EXCL)

static bool pidfd_match(const struct target_fd *target)
{
	return !strcmp(target->link, "anon_inode:[pidfd]") || !strncmp(target->link, "pidfd:[", 7);
}

/* The last number of "NSpid:\t1203\t7\n": the pid in the process's own pid namespace. */
static int innermost_pid(const char *text)
{
	const char *value = proc_field(text, "NSpid");
	char *end;
	long pid = -1;

	while (value) {
		long next = strtol(value, &end, 10);
		if (end == value)
			break;
		pid = next;
		value = *end == '\t' || *end == ' ' ? end + 1 : NULL;
	}
	return pid;
}

static int fail_outside(struct dump *dump, pid_t pid, int flags)
{
	struct proc_stat stat = {.comm = "unknown"};
	_cleanup_fd_ int proc_dirfd = -1;

	for (size_t i = 0; i < dump->task_count && (flags & O_EXCL); i++)
		for (size_t thread = 1; thread < dump->tasks[i]->thread_count; thread++)
			if (dump->tasks[i]->threads[thread].tid == pid)
				return fail(&dump->failure, EOPNOTSUPP, "fd-pidfd-thread", NULL,
					    "its owner must close it before the dump",
					    "it is a pidfd of the thread %d, which cannot be restored", pid);
	if (pid <= 0)
		return fail(&dump->failure, EOPNOTSUPP, "fd-pidfd-outside", NULL,
			    "its owner must close it before the dump",
			    "it is a pidfd of a process outside criu's pid namespace");
	proc_dirfd = proc_open(pid);
	if (proc_dirfd >= 0)
		proc_read_stat(proc_dirfd, "stat", &stat);
	return fail(&dump->failure, EOPNOTSUPP, "fd-pidfd-outside", NULL,
		    "dump a tree that contains that process too, or its owner must close it before the dump",
		    "it is a pidfd of pid %d (%s), which is outside the tree", pid, stat.comm);
}

static int pidfd_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	int ret = fdinfo_read(dump, target->fd, &text);
	uint64_t number;

	if (!ret)
		ret = fdinfo_number(dump, text, "Pid", 10, &number);
	if (ret < 0)
		return ret;
	pid_t pid = (pid_t)number;
	if (pid != -1 && !dump_find_task(dump, pid))
		return fail_outside(dump, pid, target->flags);
	entry->pidfd = arena_message(&dump->arena, PidfdEntry, pidfd_entry);
	entry->pidfd->id = entry->id;
	entry->pidfd->ino = target->stat.st_ino;
	entry->pidfd->flags = target->flags & PIDFD_FLAGS;
	entry->pidfd->nspid = pid == -1 ? -1 : innermost_pid(text);
	entry->pidfd->fown = target->fown;
	return 0;
}

/* A pidfd of a process that has ended and has been waited for. No signal tells the task of it. */
static int open_dead(struct restore *restore, int *ret_fd)
{
	int fd = -1;
	struct clone_args args = {.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&fd};
	siginfo_t info;

	pid_t pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		_exit(0);
	if (pid < 0)
		return fail_errno(&restore->failure, errno, "pidfd-open", NULL, NULL, "cannot make a process");
	while (waitid(P_PID, pid, &info, WEXITED | __WALL) < 0)
		if (errno != EINTR) {
			int error = errno;
			close(fd);
			return fail_errno(&restore->failure, error, "pidfd-open", NULL, NULL, "cannot wait");
		}
	*ret_fd = fd;
	return 0;
}

static int pidfd_open_kind(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const PidfdEntry *entry = file->entry->pidfd;
	_cleanup_fd_ int fd = -1;
	int ret = 0;

	if (!entry || (entry->nspid != -1 && !restore_find_task(restore, entry->nspid)))
		return fail(&restore->failure, EINVAL, "image-pidfd", NULL, NULL,
			    "files.img: file %u is a pidfd of pid %d, which is not in the images", file->id,
			    entry ? entry->nspid : 0);
	if (entry->nspid == -1) {
		ret = open_dead(restore, &fd);
	} else {
		fd = syscall(SYS_pidfd_open, entry->nspid, entry->flags & PIDFD_FLAGS);
		if (fd < 0)
			ret = fail_errno(&restore->failure, errno, "pidfd-open", NULL, NULL,
					 "cannot open a pidfd of pid %d", entry->nspid);
	}
	if (!ret)
		ret = status_flags_restore(restore, fd, entry->flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

const struct fd_kind pidfd_kind = {
	.name = "pidfd",
	.type = FD_TYPES__PIDFD,
	.match = pidfd_match,
	.dump = pidfd_dump,
	.open = pidfd_open_kind,
};
