/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of unix sockets.
 *
 * The kernel keeps the bytes that were given to bind(), even if the path was relative, the file was renamed or
 * removed since, or an accepted socket only shares its listener's name. So a name says nothing about the file;
 * SIOCUNIXFILE opens that.
 *
 * To give a socket a name that must not appear in the file system (a connected socket's, a removed file's), it is
 * bound inside an empty tmpfs that is the root directory for that moment: any path works there, relative ones too,
 * nobody else sees it, and no file of the user is moved away. The file is connected to through /proc/self/fd.
 */
#include "kinds/fd/unix_name.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "base/fd.h"
#include "base/log.h"

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE (SIOCPROTOPRIVATE + 0)
#endif

static const char deleted_suffix[] = " (deleted)";

char *unix_name_show(const UnixSkEntry *entry, char *buffer, size_t size)
{
	const char *name = (const char *)entry->name.data;

	if (!entry->name.len)
		snprintf(buffer, size, "unix socket %u", entry->ino);
	else if (unix_name_is_abstract(entry))
		snprintf(buffer, size, "unix socket @%.*s", (int)entry->name.len - 1, name + 1);
	else
		snprintf(buffer, size, "unix socket \"%s%s%.*s\"",
			 name[0] != '/' && entry->name_dir ? entry->name_dir : "",
			 name[0] != '/' && entry->name_dir ? "/" : "", (int)entry->name.len, name);
	return buffer;
}

/* ---- dump ---- */

/* Path of the socket's file as criu sees it, without the kernel's mark; *ret_deleted says whether it had one. */
static int read_file_path(int path_fd, char **ret_path, bool *ret_deleted)
{
	char link[32];
	struct stat stat;
	size_t suffix = strlen(deleted_suffix);

	snprintf(link, sizeof(link), "/proc/self/fd/%d", path_fd);
	int error = fstat(path_fd, &stat) < 0 ? -errno : read_link_at(AT_FDCWD, link, ret_path);
	if (error < 0)
		return error;
	*ret_deleted = !stat.st_nlink;
	size_t length = strlen(*ret_path);
	if (length > suffix && !strcmp(*ret_path + length - suffix, deleted_suffix)) {
		(*ret_path)[length - suffix] = '\0';
		*ret_deleted = true;
	}
	return 0;
}

static const char *skip_dots(const char *name)
{
	while (!strncmp(name, "./", 2)) {
		name += 2;
		while (*name == '/')
			name++;
	}
	return name;
}

static bool same_file(const char *path, const struct stat *wanted)
{
	struct stat stat;

	return !lstat(path, &stat) && stat.st_dev == wanted->st_dev && stat.st_ino == wanted->st_ino;
}

/* The directory that a relative name was bound in: the one where the file is, else the task's. */
static char *find_name_dir(struct dump *dump, const struct dump_task *task, const char *name, const char *path)
{
	_cleanup_free_ char *cwd = NULL;
	const char *rest = skip_dots(name);
	size_t path_length = strlen(path), rest_length = strlen(rest);

	if (path_length > rest_length + 1 && path[path_length - rest_length - 1] == '/' &&
	    !strcmp(path + path_length - rest_length, rest))
		return arena_printf(&dump->arena, "%.*s", (int)(path_length - rest_length - 1), path);
	if (!task || read_link_at(task->proc_dirfd, "cwd", &cwd) < 0)
		return NULL;
	return arena_strdup(&dump->arena, cwd);
}

static int dump_path(struct dump *dump, const struct dump_task *task, int fd, UnixSkEntry *entry)
{
	_cleanup_free_ char *path = NULL, *bound = NULL;
	_cleanup_fd_ int path_fd = ioctl(fd, SIOCUNIXFILE);
	struct stat stat;
	const char *name = arena_printf(&dump->arena, "%.*s", (int)entry->name.len, entry->name.data);
	bool deleted = false;

	if (path_fd < 0 || fstat(path_fd, &stat) < 0 || read_file_path(path_fd, &path, &deleted) < 0)
		return fail_errno(&dump->failure, errno, "unix-name", NULL,
				  "criu needs CAP_NET_ADMIN in the socket's network namespace",
				  "cannot find the file of the socket's name \"%s\"", name);
	entry->file_perms = arena_message(&dump->arena, FilePermsEntry, file_perms_entry);
	entry->file_perms->mode = stat.st_mode;
	entry->file_perms->uid = stat.st_uid;
	entry->file_perms->gid = stat.st_gid;
	if (name[0] != '/') {
		entry->name_dir = find_name_dir(dump, task, name, path);
		if (!entry->name_dir)
			return fail(&dump->failure, EOPNOTSUPP, "unix-name", NULL, "bind it to an absolute path",
				    "the directory of its name \"%s\" is not known", name);
	}
	entry->has_deleted = entry->deleted = deleted;
	bound = name[0] == '/' ? xstrdup(name) : xasprintf("%s/%s", entry->name_dir, name);
	if (!deleted && !same_file(bound, &stat) && same_file(path, &stat) && !dump->options->format_plain)
		entry->file_path = arena_strdup(&dump->arena, path);
	return 0;
}

int unix_name_dump(struct dump *dump, const struct dump_task *task, int fd, UnixSkEntry *entry)
{
	struct sockaddr_un address;
	socklen_t length = sizeof(address);
	const size_t family = offsetof(struct sockaddr_un, sun_path);

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		return fail_errno(&dump->failure, errno, "unix-name", NULL, NULL, "cannot read the socket's name");
	if (length <= family)
		return 0;
	/* A path may fill sun_path without its NUL, which the kernel counts all the same. */
	entry->name.len = length - family;
	entry->name.data = arena_alloc(&dump->arena, entry->name.len + 1);
	memcpy(entry->name.data, address.sun_path,
	       entry->name.len < sizeof(address.sun_path) ? entry->name.len : sizeof(address.sun_path));
	return unix_name_is_path(entry) ? dump_path(dump, task, fd, entry) : 0;
}

/* ---- restore ---- */

static socklen_t make_address(const void *name, size_t length, struct sockaddr_un *ret_address)
{
	memset(ret_address, 0, sizeof(*ret_address));
	ret_address->sun_family = AF_UNIX;
	if (length > sizeof(ret_address->sun_path))
		length = sizeof(ret_address->sun_path);
	memcpy(ret_address->sun_path, name, length);
	return offsetof(struct sockaddr_un, sun_path) + length;
}

int unix_name_check(struct restore *restore, const UnixSkEntry *entry)
{
	size_t longest = sizeof(((struct sockaddr_un *)0)->sun_path) + 1;
	const char *name = (const char *)entry->name.data;

	if (entry->name.len > longest || (entry->name.len == longest && name[longest - 1]))
		return fail(&restore->failure, EINVAL, "image-unix-name", NULL, NULL,
			    "files.img: the name of unix socket %u has %zu bytes", entry->id, entry->name.len);
	if (unix_name_is_path(entry) && memchr(name, 0, entry->name.len) &&
	    strnlen(name, entry->name.len) != entry->name.len - 1)
		return fail(&restore->failure, EINVAL, "image-unix-name", NULL, NULL,
			    "files.img: the name of unix socket %u has bytes behind its end", entry->id);
	if (unix_name_is_path(entry) && name[0] != '/' && !entry->name_dir)
		return fail(&restore->failure, EINVAL, "image-unix-name", NULL, NULL,
			    "files.img: the directory of unix socket \"%.*s\" is missing", (int)entry->name.len, name);
	return 0;
}

/* A socket file that lies where ours shall be was left by the tree; anything else is somebody's. */
static int remove_stale(struct restore *restore, const char *path)
{
	struct stat stat;

	if (lstat(path, &stat) < 0)
		return errno == ENOENT ? 0
				       : fail_errno(&restore->failure, errno, "unix-name", NULL, NULL,
						    "cannot look at \"%s\"", path);
	if (!S_ISSOCK(stat.st_mode))
		return fail(&restore->failure, EEXIST, "unix-name-in-use", NULL, "move it away",
			    "\"%s\" is not a socket and cannot be replaced", path);
	if (unlink(path) < 0)
		return fail_errno(&restore->failure, errno, "unix-name", NULL, NULL, "cannot replace \"%s\"", path);
	return 0;
}

int unix_name_apply_perms(struct restore *restore, const UnixSkEntry *entry, int path_fd)
{
	const FilePermsEntry *perms = entry->file_perms;
	char link[32];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", path_fd);
	if (!perms)
		return 0;
	if (fchownat(path_fd, "", perms->uid, perms->gid, AT_EMPTY_PATH) < 0 || chmod(link, perms->mode & 07777) < 0)
		return fail_errno(&restore->failure, errno, "unix-name", NULL, NULL,
				  "cannot give the socket's file its owner %u:%u and mode %o", perms->uid, perms->gid,
				  perms->mode & 07777);
	return 0;
}

/* With the name's directory as working directory. */
static int bind_path(struct restore *restore, int fd, const UnixSkEntry *entry, const char *path)
{
	struct sockaddr_un address;
	socklen_t length = make_address(entry->name.data, entry->name.len, &address);
	int error = remove_stale(restore, path);

	if (!error && entry->file_path)
		error = remove_stale(restore, entry->file_path);
	if (error < 0)
		return error;
	mode_t mask = umask(0177);
	int result = bind(fd, (struct sockaddr *)&address, length) < 0 ? -errno : 0;
	umask(mask);
	if (result == -ENOENT)
		return fail(&restore->failure, ENOENT, "unix-name-directory", NULL,
			    "make its directory before the restore", "cannot bind: there is no directory for \"%s\"",
			    path);
	if (result < 0)
		return fail_errno(&restore->failure, result, "unix-name", NULL, NULL, "cannot bind to \"%s\"", path);
	_cleanup_fd_ int path_fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (path_fd < 0)
		return fail_errno(&restore->failure, errno, "unix-name", NULL, NULL, "cannot open \"%s\"", path);
	error = unix_name_apply_perms(restore, entry, path_fd);
	if (!error && entry->file_path && rename(path, entry->file_path) < 0)
		return fail_errno(&restore->failure, errno, "unix-name", NULL, NULL, "cannot rename \"%s\" to \"%s\"",
				  path, entry->file_path);
	return error;
}

static int bind_abstract(struct restore *restore, int fd, const UnixSkEntry *entry)
{
	struct sockaddr_un address;
	socklen_t length = make_address(entry->name.data, entry->name.len, &address);

	if (!bind(fd, (struct sockaddr *)&address, length))
		return 0;
	return fail_errno(&restore->failure, errno, "unix-name-in-use", NULL,
			  errno == EADDRINUSE ? "end the program that has the name" : NULL,
			  "cannot bind to the abstract name \"@%.*s\"", (int)entry->name.len - 1,
			  (const char *)entry->name.data + 1);
}

int unix_name_bind(struct restore *restore, int fd, const UnixSkEntry *entry)
{
	_cleanup_free_ char *path = NULL;

	if (unix_name_is_abstract(entry))
		return bind_abstract(restore, fd, entry);
	path = xasprintf("%.*s", (int)entry->name.len, (const char *)entry->name.data);
	if (path[0] == '/')
		return bind_path(restore, fd, entry, path);
	_cleanup_fd_ int before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (before < 0 || chdir(entry->name_dir) < 0)
		return fail_errno(&restore->failure, errno, "unix-name-directory", NULL,
				  "make the directory before the restore", "cannot change to the directory \"%s\"",
				  entry->name_dir);
	int error = bind_path(restore, fd, entry, path);
	if (fchdir(before) < 0 && !error)
		error = fail_errno(&restore->failure, errno, "unix-name-directory", NULL, NULL,
				   "cannot change back from the directory \"%s\"", entry->name_dir);
	return error;
}

int unix_name_open(struct restore *restore, const UnixSkEntry *entry, int *ret_fd)
{
	const char *name = (const char *)entry->name.data;
	_cleanup_free_ char *path = NULL;

	if (entry->file_path)
		path = xstrdup(entry->file_path);
	else if (name[0] == '/')
		path = xasprintf("%.*s", (int)entry->name.len, name);
	else
		path = xasprintf("%s/%.*s", entry->name_dir, (int)entry->name.len, name);
	int fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "unix-name", NULL, NULL, "cannot find the socket \"%s\"",
				  path);
	*ret_fd = fd;
	return 0;
}

int unix_name_connect_file(int fd, int path_fd)
{
	char path[32];
	struct sockaddr_un address;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	socklen_t length = make_address(path, strlen(path) + 1, &address);
	return connect(fd, (struct sockaddr *)&address, length) < 0 ? -errno : 0;
}

int unix_name_connect(struct restore *restore, int fd, const UnixSkEntry *entry)
{
	struct sockaddr_un address;
	_cleanup_fd_ int path_fd = -1;

	if (unix_name_is_abstract(entry)) {
		socklen_t length = make_address(entry->name.data, entry->name.len, &address);
		return connect(fd, (struct sockaddr *)&address, length) < 0 ? -errno : 0;
	}
	int error = unix_name_open(restore, entry, &path_fd);
	return error ? error : unix_name_connect_file(fd, path_fd);
}

/* ---- the private root ---- */

static int make_private_root(void)
{
	_cleanup_fd_ int context = syscall(SYS_fsopen, "tmpfs", 1 /* FSOPEN_CLOEXEC */);

	if (context < 0 || syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "mode", "0777", 0) < 0 ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	int fd = syscall(SYS_fsmount, context, 1 /* FSMOUNT_CLOEXEC */, 0);
	return fd < 0 ? -errno : fd;
}

static int park_new(struct restore *restore, int new_fd, int *ret_fd)
{
	if (new_fd < 0)
		return fail_errno(&restore->failure, new_fd == -1 ? errno : new_fd, "unix-private-root", NULL,
				  "criu needs CAP_SYS_ADMIN and Linux 5.2", "cannot make a private root directory");
	int error = restore_park(restore, &new_fd);
	if (!error)
		*ret_fd = new_fd;
	return error;
}

int unix_private_root_enter(struct restore *restore, struct unix_private_root *root)
{
	int error = 0;

	if (root->real_root < 0)
		error = park_new(restore, open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), &root->real_root);
	if (!error && root->private_root < 0)
		error = park_new(restore, make_private_root(), &root->private_root);
	if (error < 0)
		return error;
	root->working_directory = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fchdir(root->private_root) < 0 || chroot(".") < 0)
		return fail_errno(&restore->failure, errno, "unix-private-root", NULL, NULL,
				  "cannot enter a private root directory");
	return 0;
}

void unix_private_root_leave(struct unix_private_root *root)
{
	if (fchdir(root->real_root) < 0 || chroot(".") < 0)
		log_error("cannot leave the private root directory: %s", strerror(errno));
	if (root->working_directory >= 0 && fchdir(root->working_directory) < 0)
		log_warn("cannot go back to the working directory: %s", strerror(errno));
	close_fd_pointer(&root->working_directory);
	root->working_directory = -1;
}

static void make_parents(char *path)
{
	for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(path, 0777);
		*slash = '/';
	}
}

int unix_private_root_bind(int fd, const void *name, size_t length, int *ret_path_fd)
{
	_cleanup_free_ char *path = xasprintf("%.*s", (int)length, (const char *)name);
	struct sockaddr_un address;
	socklen_t address_length = make_address(name, length, &address);
	int result = 0;

	if (!path[0]) {
		*ret_path_fd = -1;
		return bind(fd, (struct sockaddr *)&address, address_length) < 0 ? -errno : 0;
	}
	mode_t mask = umask(0);
	make_parents(path);
	if (bind(fd, (struct sockaddr *)&address, address_length) < 0)
		result = -errno;
	umask(mask);
	if (result < 0)
		return result;
	*ret_path_fd = open(path, O_PATH | O_CLOEXEC);
	if (*ret_path_fd < 0)
		result = -errno;
	unlink(path);
	return result;
}
