/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories and log of a command. A wrong directory must be told before a process is stopped, and in one line that
 * names it.
 */
#include "cmd/command.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"

static int open_directory(const char *path, const char *what, struct failure *failure, int *ret_fd)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0) {
		*ret_fd = fd;
		return 0;
	}
	char object[320];
	snprintf(object, sizeof(object), "%s %s", what, path);
	if (errno == ENOENT)
		return fail(failure, ENOENT, "directory-missing", object, "create it first", "does not exist");
	if (errno == ENOTDIR)
		return fail(failure, ENOTDIR, "directory-not", object, NULL, "is not a directory");
	return fail_errno(failure, errno, "directory-open", object, NULL, "cannot be opened");
}

static int make_probe_file(int dirfd)
{
	char name[40];
	int fd = openat(dirfd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);

	if (fd >= 0) {
		close(fd);
		return 0;
	}
	if (errno == ENOSPC || errno == EDQUOT || errno == EROFS)
		return -errno;
	/* Not every file system has files without a name. */
	snprintf(name, sizeof(name), ".criu-%d", getpid());
	fd = openat(dirfd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	close(fd);
	return unlinkat(dirfd, name, 0) < 0 ? -errno : 0;
}

static int check_writable(int dirfd, const char *path, struct failure *failure)
{
	struct statvfs filesystem;
	char object[320];

	snprintf(object, sizeof(object), "images directory %s", path);
	if (fstatvfs(dirfd, &filesystem) == 0 && (filesystem.f_flag & ST_RDONLY))
		return fail(failure, EROFS, "directory-read-only", object, "choose another with --images-dir",
			    "lies on a file system that is mounted read-only");
	if (faccessat(dirfd, ".", W_OK | X_OK, AT_EACCESS) < 0)
		return fail_errno(failure, errno, "directory-read-only", object, "choose another with --images-dir",
				  "cannot be written to");
	/* Root passes the permission check of directories where no file can be made (immutable, /proc, no space). */
	int r = make_probe_file(dirfd);
	if (r < 0)
		return fail_errno(failure, r, "directory-read-only", object, "choose another with --images-dir",
				  "no file can be made in it");
	return 0;
}

static int open_images(struct command *command)
{
	const struct options *options = command->options;
	const char *path = options->images_dir ?: ".";
	enum verb_images images = command->verb->images;

	/* `criu show DIR` */
	if (images == VERB_IMAGES_READ && command->verb->bit == VERB_SHOW && options->positional_count)
		path = options->positional[0];
	if (images == VERB_IMAGES_NONE || (images == VERB_IMAGES_IF_GIVEN && !options->images_dir))
		return 0;
	int r = open_directory(path, "images directory", &command->failure, &command->images_dirfd);
	if (r < 0 || images != VERB_IMAGES_WRITE)
		return r;
	return check_writable(command->images_dirfd, path, &command->failure);
}

static int open_work(struct command *command)
{
	const struct options *options = command->options;

	if (options->work_dir)
		return open_directory(options->work_dir, "work directory", &command->failure, &command->work_dirfd);
	if (command->images_dirfd < 0)
		return 0;
	command->work_dirfd = fcntl(command->images_dirfd, F_DUPFD_CLOEXEC, 3);
	if (command->work_dirfd < 0)
		return fail_errno(&command->failure, errno, "directory-open", "images directory", NULL,
				  "no descriptor left");
	return 0;
}

static int open_log(struct command *command)
{
	const struct options *options = command->options;
	int level = options->verbosity;

	if (options->log_pid && !options->log_file)
		return fail(&command->failure, EINVAL, "usage", "--log-pid", "add --log-file",
			    "the logs of the tasks are named after the log file");
	if (!options->log_file) {
		log_setup(STDERR_FILENO, level);
		return 0;
	}
	int dirfd = command->work_dirfd >= 0 ? command->work_dirfd : AT_FDCWD;
	int fd = openat(dirfd, options->log_file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0) {
		char object[320];

		snprintf(object, sizeof(object), "log file %s", options->log_file);
		return fail_errno(&command->failure, errno, "log-open", object,
				  "a relative name is taken from the work directory", "cannot be written");
	}
	log_setup(fd, level);
	if (options->log_pid)
		log_split(dirfd, options->log_file);
	return 0;
}

/* Scripts are told the directory's name even if they change theirs. */
static void set_scripts(struct command *command)
{
	const struct options *options = command->options;
	char link[32];
	char *path = NULL;

	if (!options->action_scripts.count || command->images_dirfd < 0)
		return;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", command->images_dirfd);
	if (read_link_at(AT_FDCWD, link, &path) < 0)
		path = xstrdup(options->images_dir ?: ".");
	command->scripts = (struct action_scripts){
		.paths = (const char *const *)options->action_scripts.items,
		.count = options->action_scripts.count,
		.images_dir = path,
	};
}

/*
 * Before any descriptor of our own can get one of these numbers. The first three are not left free: what is opened
 * next would become standard error.
 */
static void close_descriptors(const struct options *options)
{
	for (size_t i = 0; i < options->close_fd_count; i++) {
		int fd = options->close_fds[i];
		_cleanup_fd_ int null = fd <= STDERR_FILENO ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
		if (null < 0)
			close(fd);
		else
			dup2(null, fd);
	}
}

/*
 * As many descriptors as the system lets us have: there are some of each process of the tree, and at its restore all of
 * a process's own beside them. `ulimit -n` sets the hard limit too, which takes a capability to raise. What is restored
 * has the limits of its images.
 */
static void raise_descriptor_limit(void)
{
	enum { LARGE_TREE = 1 << 16 };
	struct rlimit limit, higher = {LARGE_TREE, LARGE_TREE};

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	if (limit.rlim_max < LARGE_TREE && !setrlimit(RLIMIT_NOFILE, &higher))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int command_setup(struct command *command)
{
	close_descriptors(command->options);
	raise_descriptor_limit();
	int r = open_images(command);

	if (r < 0 || (r = open_work(command)) < 0 || (r = open_log(command)) < 0)
		return r;
	set_scripts(command);
	command->progress.json = command->options->json;
	command->progress.terminal = isatty(STDERR_FILENO);
	return 0;
}

void command_finish(struct command *command)
{
	progress_end(&command->progress);
	if (command->images_dirfd >= 0)
		close(command->images_dirfd);
	if (command->work_dirfd >= 0)
		close(command->work_dirfd);
	free((char *)command->scripts.images_dir);
}
