/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inotify instances.
 *
 * fdinfo tells of each watch the inode, the device and a file handle, no path: the inode is watched, whatever it is
 * called now. open_by_handle_at() on any mount of that device gives the file, and its link in /proc the path. The
 * file is then kept like a mapped one (a regular file of the images, whose id is in inotify_wd_entry.id), so a file
 * that was deleted comes back with the rest. Images of CRIU have no id there, but the path in the handle.
 *
 * Watch descriptors are part of what the program remembers. The kernel gives ascending numbers and never one twice,
 * so the numbers between are used up with watches that are removed again.
 *
 * Queued events that nobody has read yet cannot be put back: they are lost, with a warning in the log.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/regular.h"

#define HANDLE_WORDS 16
#define HANDLE_BYTES (HANDLE_WORDS * sizeof(uint64_t))
/* Using up a number costs a microsecond; a restore does not spend more than some ten seconds on them. */
#define LAST_WATCH 10000000

static bool inotify_match(const struct target_fd *target)
{
	return !strcmp(target->link, "anon_inode:inotify") || !strcmp(target->link, "anon_inode:[inotify]");
}

static bool parse_handle(struct dump *dump, const char *hex, FhEntry *handle)
{
	uint64_t *words = arena_alloc(&dump->arena, HANDLE_BYTES);

	if (handle->bytes > HANDLE_BYTES)
		return false;
	for (size_t i = 0; i < handle->bytes; i++) {
		unsigned int byte;
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return false;
		((unsigned char *)words)[i] = byte;
	}
	handle->handle = words;
	handle->n_handle = HANDLE_WORDS;
	return true;
}

/* Parses "inotify wd:1 ino:3c51a sdev:fe00000 mask:300 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:1ac…". */
static bool parse_watch(struct dump *dump, const char *line, InotifyWdEntry *watch)
{
	FhEntry *handle = watch->f_handle = arena_message(&dump->arena, FhEntry, fh_entry);
	int hex = 0;

	int count = sscanf(line,
			   "inotify wd:%x ino:%" SCNx64 " sdev:%x mask:%x ignored_mask:%x fhandle-bytes:%x "
			   "fhandle-type:%x f_handle:%n",
			   &watch->wd, &watch->i_ino, &watch->s_dev, &watch->mask, &watch->ignored_mask, &handle->bytes,
			   &handle->type, &hex);
	/* A file system without handles has none. */
	return count == 5 || (count == 7 && hex && parse_handle(dump, line + hex, handle));
}

/* The mount point in a line of mountinfo if the mount is of @device: "36 35 98:0 /root /mount\040point options …". */
static char *mount_point_of(const char *line, uint32_t device)
{
	unsigned int mount_major, mount_minor;
	int start = 0, end = 0;

	if (sscanf(line, "%*d %*d %u:%u %*s %n%*s%n", &mount_major, &mount_minor, &start, &end) != 2 || !end ||
	    (mount_major << 20 | mount_minor) != device)
		return NULL;
	char *path = xasprintf("%.*s", end - start, line + start), *to = path;
	for (const char *from = path; *from; to++) {
		bool escaped = from[0] == '\\' && from[1] && from[2] && from[3];
		*to = escaped ? (from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0') : *from;
		from += escaped ? 4 : 1;
	}
	*to = '\0';
	return path;
}

static bool is_inode(int fd, const InotifyWdEntry *watch)
{
	struct stat stat;

	return !fstat(fd, &stat) && stat.st_ino == watch->i_ino;
}

/* Returns an O_PATH descriptor of the watched file by its handle on the mount at @path of the task, or -1. */
static int open_on_mount(const struct dump_task *task, const char *path, const InotifyWdEntry *watch)
{
	struct {
		struct file_handle header;
		unsigned char bytes[HANDLE_BYTES];
	} handle = {.header = {.handle_bytes = watch->f_handle->bytes, .handle_type = watch->f_handle->type}};
	_cleanup_free_ char *below_root = xasprintf("root%s", path);
	_cleanup_fd_ int place = openat(task->proc_dirfd, below_root, O_PATH | O_CLOEXEC), mount = -1;

	/* Opening a directory is an event for those who watch it: not if its identity is all that is asked for. */
	if (place >= 0 && is_inode(place, watch))
		return TAKE_FD(place);
	if (!watch->f_handle->bytes)
		return -1;
	mount = openat(task->proc_dirfd, below_root, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (mount < 0)
		return -1;
	memcpy(handle.header.f_handle, watch->f_handle->handle, watch->f_handle->bytes);
	_cleanup_fd_ int fd = open_by_handle_at(mount, &handle.header, O_PATH | O_CLOEXEC);
	return fd >= 0 && is_inode(fd, watch) ? TAKE_FD(fd) : -1;
}

/* Returns an O_PATH descriptor, or -1: no mount of the task leads to the file. */
static int open_watched(const struct dump_task *task, const InotifyWdEntry *watch)
{
	_cleanup_free_ char *mounts = NULL;
	char *rest, *line;
	int fd = -1;

	if (read_text_at(task->proc_dirfd, "mountinfo", &mounts, NULL) < 0)
		return -1;
	rest = mounts;
	while (fd < 0 && (line = strsep(&rest, "\n"))) {
		_cleanup_free_ char *path = mount_point_of(line, watch->s_dev);
		if (path)
			fd = open_on_mount(task, path, watch);
	}
	return fd;
}

static int name_watched(struct dump *dump, const struct target_fd *target, InotifyWdEntry *watch)
{
	_cleanup_fd_ int fd = open_watched(target->task, watch);
	_cleanup_free_ char *link = NULL;
	struct stat stat;
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fd < 0 || fstat(fd, &stat) < 0 || read_link_at(AT_FDCWD, path, &link) < 0)
		return fail(&dump->failure, ENOENT, "fd-inotify-path", NULL,
			    "mount its file system where the program can see it, or remove the watch before the dump",
			    "watch %u: the watched file (device %u:%u, inode %" PRIu64 ") cannot be found", watch->wd,
			    watch->s_dev >> 20, watch->s_dev & 0xfffff, watch->i_ino);
	watch->f_handle->path = arena_strdup(&dump->arena, link);
	return regular_dump_fd(dump, target->task, fd, link, O_PATH | (S_ISDIR(stat.st_mode) ? O_DIRECTORY : 0),
			       &watch->id);
}

static int dump_watches(struct dump *dump, const struct target_fd *target, char *text, InotifyFileEntry *inotify)
{
	size_t capacity = 0;
	char *line;

	for (const char *found = text; (found = strstr(found, "inotify wd:")); found++)
		capacity++;
	inotify->wd = arena_alloc(&dump->arena, (capacity + 1) * sizeof(*inotify->wd));
	while ((line = strsep(&text, "\n"))) {
		if (strncmp(line, "inotify wd:", 11))
			continue;
		InotifyWdEntry *watch = arena_message(&dump->arena, InotifyWdEntry, inotify_wd_entry);
		if (!parse_watch(dump, line, watch))
			return fail(&dump->failure, EOPNOTSUPP, "fd-fdinfo", NULL, NULL,
				    "this kernel writes an inotify's fdinfo in an unknown way");
		int ret = name_watched(dump, target, watch);
		if (ret < 0)
			return ret;
		inotify->wd[inotify->n_wd++] = watch;
	}
	return 0;
}

static int inotify_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	int queued_bytes = 0, ret = fdinfo_read(dump, target->fd, &text);

	if (ret < 0)
		return ret;
	if (!ioctl(target->fd, FIONREAD, &queued_bytes) && queued_bytes)
		log_warn("%s: inotify: %d bytes of events that nobody has read are lost",
			 dump_fd_name(dump, target->task, target->number), queued_bytes);
	entry->ify = arena_message(&dump->arena, InotifyFileEntry, inotify_file_entry);
	entry->ify->id = entry->id;
	entry->ify->flags = target->flags;
	entry->ify->fown = target->fown;
	return dump_watches(dump, target, text, entry->ify);
}

static int inotify_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	_cleanup_fd_ int fd = -1;

	if (!file->entry->ify)
		return fail(&restore->failure, EINVAL, "image-inotify", NULL, NULL,
			    "files.img: file %u has no inotify entry", file->id);
	/* Its own flags come with the watches: what using up numbers leaves in the queue is read without waiting. */
	fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "inotify-open", NULL,
				  "raise /proc/sys/fs/inotify/max_user_instances", "cannot make an inotify instance");
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int open_restored(struct restore *restore, const InotifyWdEntry *watch, int *ret_fd)
{
	if (watch->id)
		return regular_open(restore, watch->id, O_PATH, ret_fd);
	if (!watch->f_handle || !watch->f_handle->path)
		return fail(&restore->failure, EINVAL, "image-inotify", NULL, NULL,
			    "watch %u: the image has no path of the watched file", watch->wd);
	int fd = open(watch->f_handle->path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "inotify-path", watch->f_handle->path, NULL,
				  "watch %u: cannot open the watched file", watch->wd);
	*ret_fd = fd;
	return 0;
}

/* Uses up the numbers from *next to before @wanted. Returns 0 or -errno. */
static int use_up_numbers(int fd, const char *path, uint32_t *next, uint32_t wanted)
{
	while (*next < wanted) {
		int number = inotify_add_watch(fd, path, IN_DELETE_SELF);
		if (number < 0)
			return -errno;
		inotify_rm_watch(fd, number);
		*next = number + 1;
	}
	return 0;
}

static int restore_watch(struct restore *restore, int fd, const InotifyWdEntry *watch, uint32_t *next)
{
	_cleanup_fd_ int watched = -1;
	char path[48];
	int ret = open_restored(restore, watch, &watched);

	if (ret < 0)
		return ret;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", watched);
	ret = use_up_numbers(fd, path, next, watch->wd);
	int number = ret < 0 ? ret : inotify_add_watch(fd, path, watch->mask & ~(uint32_t)IN_ONLYDIR);
	if (number < 0)
		return fail_errno(&restore->failure, ret < 0 ? -ret : errno, "inotify-add", NULL,
				  "raise /proc/sys/fs/inotify/max_user_watches", "cannot add watch %u", watch->wd);
	if (number != (int)watch->wd)
		return fail(&restore->failure, EEXIST, "inotify-add", NULL, NULL,
			    "watch %u became number %d: another watch is of the same file", watch->wd, number);
	*next = number + 1;
	return 0;
}

static int compare_watches(const void *left, const void *right)
{
	const InotifyWdEntry *const *a = left, *const *b = right;

	return ((*a)->wd > (*b)->wd) - ((*a)->wd < (*b)->wd);
}

static void discard_events(int fd)
{
	char buffer[4096];
	ssize_t got;

	do
		got = read(fd, buffer, sizeof(buffer));
	while (got > 0 || (got < 0 && errno == EINTR));
}

/* As late as possible: building the tree opens, makes and removes files that may be watched. */
static int inotify_finish(struct restore *restore, struct restore_file *file, int fd)
{
	const InotifyFileEntry *entry = file->entry->ify;
	_cleanup_free_ InotifyWdEntry **watches = xmemdup(entry->wd, entry->n_wd * sizeof(*watches));
	uint32_t next = 1;

	qsort(watches, entry->n_wd, sizeof(*watches), compare_watches);
	for (size_t i = 0; i < entry->n_wd; i++) {
		if (watches[i]->wd < next || watches[i]->wd > LAST_WATCH)
			return fail(&restore->failure, EINVAL, "image-inotify", NULL, NULL,
				    "watch %u is one too many or its number is beyond %d", watches[i]->wd, LAST_WATCH);
		int ret = restore_watch(restore, fd, watches[i], &next);
		if (ret < 0)
			return ret;
	}
	discard_events(fd);
	return status_flags_restore(restore, fd, entry->flags);
}

const struct fd_kind inotify_kind = {
	.name = "inotify",
	.type = FD_TYPES__INOTIFY,
	.match = inotify_match,
	.dump = inotify_dump,
	.open = inotify_open,
	.finish = inotify_finish,
};
