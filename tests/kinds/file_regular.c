/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open files that have a path: positions, flags, directories, O_PATH, links, devices, /proc and /sys, renamed files,
 * names that look deleted, and mapped files.
 *
 * in-place
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_FILES 32
#define TEXT "0123456789abcdefghijklmnopqrstuvwxyz"

struct expected {
	int fd;
	const char *path; /* that leads to it now; NULL = not checked */
	int flags, descriptor_flags;
	off_t position;
	struct stat stat;
};

static struct expected files[MAX_FILES];
static size_t file_count;

static int make(const char *path, const char *content)
{
	int fd = MUST(open(path, O_RDWR | O_CREAT | O_EXCL, 0640));

	MUST(write(fd, content, strlen(content)));
	close(fd);
	return 0;
}

static int expect(int fd, const char *path)
{
	struct expected *file = &files[file_count++];

	file->fd = fd;
	file->path = path;
	file->flags = MUST(fcntl(fd, F_GETFL));
	file->descriptor_flags = MUST(fcntl(fd, F_GETFD));
	file->position = file->flags & O_PATH ? 0 : lseek(fd, 0, SEEK_CUR);
	MUST(fstat(fd, &file->stat));
	return fd;
}

static int at(int fd, off_t position)
{
	MUST(lseek(fd, position, SEEK_SET));
	return fd;
}

static void check_file(const struct expected *file)
{
	char link[64], target[PATH_MAX] = "", real[PATH_MAX];
	struct stat now, found;

	CHECK(fcntl(file->fd, F_GETFL) == file->flags, "%s: %o, was %o", file->path, fcntl(file->fd, F_GETFL),
	      file->flags);
	CHECK(fcntl(file->fd, F_GETFD) == file->descriptor_flags, "%s", file->path);
	CHECK(fstat(file->fd, &now) == 0);
	CHECK((now.st_mode & S_IFMT) == (file->stat.st_mode & S_IFMT) && now.st_rdev == file->stat.st_rdev);
	if (!(file->flags & O_PATH))
		CHECK(lseek(file->fd, 0, SEEK_CUR) == file->position, "%s: %ld, was %ld", file->path,
		      lseek(file->fd, 0, SEEK_CUR), file->position);
	if (!file->path)
		return;
	CHECK(lstat(file->path, &found) == 0 && found.st_ino == now.st_ino && found.st_dev == now.st_dev, "%s",
	      file->path);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", file->fd);
	CHECK(readlink(link, target, sizeof(target) - 1) > 0);
	if (!S_ISLNK(now.st_mode))
		CHECK(realpath(file->path, real) && !strcmp(real, target), "%s is %s", file->path, target);
}

int main(void)
{
	char byte, self[64];

	make("plain", TEXT);
	make("appended", TEXT);
	make("written", TEXT);
	make("before", TEXT);
	make("moved-here", "");
	make("looks (deleted)", TEXT);
	make("new\nline", TEXT);
	MUST(mkdir("directory", 0711));
	make("directory/inside", TEXT);
	MUST(symlink("plain", "link"));

	int plain = expect(at(MUST(open("plain", O_RDONLY)), 7), "plain");
	int past_end = expect(at(MUST(open("plain", O_RDWR | O_CLOEXEC)), 5000), "plain");
	int appended = expect(at(MUST(open("appended", O_RDWR | O_APPEND)), 5), "appended");
	int written = expect(MUST(open("written", O_WRONLY | O_NONBLOCK | O_DSYNC)), "written");
	int noatime = expect(MUST(open("plain", O_RDONLY | O_NOATIME | O_SYNC)), "plain");
	int moved = MUST(open("before", O_RDWR));
	MUST(rename("before", "moved-here"));
	expect(at(moved, 3), "moved-here");
	int misnamed = expect(MUST(open("looks (deleted)", O_RDWR)), "looks (deleted)");
	int newline = expect(MUST(open("new\nline", O_RDONLY)), "new\nline");
	int directory = expect(MUST(open("directory", O_RDONLY | O_DIRECTORY)), "directory");
	int path = expect(MUST(open("plain", O_PATH)), "plain");
	int path_directory = expect(MUST(open("directory", O_PATH | O_DIRECTORY)), "directory");
	int link = expect(MUST(open("link", O_PATH | O_NOFOLLOW)), "link");
	int null = expect(MUST(open("/dev/null", O_RDWR)), "/dev/null");
	int zero = expect(MUST(open("/dev/zero", O_RDONLY)), "/dev/zero");
	int full = expect(MUST(open("/dev/full", O_RDWR)), "/dev/full");
	int random = expect(MUST(open("/dev/random", O_RDONLY)), "/dev/random");
	int urandom = expect(MUST(open("/dev/urandom", O_RDONLY)), "/dev/urandom");
	snprintf(self, sizeof(self), "/proc/%d/stat", getpid());
	int own_stat = expect(MUST(open(self, O_RDONLY)), NULL);
	int uptime = expect(MUST(open("/proc/uptime", O_RDONLY)), "/proc/uptime");
	int sys = expect(MUST(open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY)),
			 "/sys/kernel/mm/transparent_hugepage/enabled");

	char *mapped = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, moved, 0));
	char *private = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, newline, 0));
	char *shown = MUST((char *)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, newline, 0));
	private[0] = 'P';

	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < file_count; i++)
			check_file(&files[i]);
		CHECK(read(plain, &byte, 1) == 1 && byte == '7' && lseek(plain, -1, SEEK_CUR) == 7);
		CHECK(read(past_end, &byte, 1) == 0);
		CHECK(write(appended, "+", 1) == 1 && pread(appended, &byte, 1, strlen(TEXT)) == 1 && byte == '+');
		CHECK(ftruncate(appended, strlen(TEXT)) == 0 && lseek(appended, 5, SEEK_SET) == 5);
		CHECK(pwrite(written, "0", 1, 0) == 1 && read(written, &byte, 1) < 0 && errno == EBADF);
		CHECK(pread(noatime, &byte, 1, 10) == 1 && byte == 'a');
		CHECK(pwrite(misnamed, "0", 1, 0) == 1);
		CHECK(faccessat(directory, "inside", F_OK, 0) == 0 && faccessat(path_directory, "absent", F_OK, 0) < 0);
		CHECK(read(path, &byte, 1) < 0 && errno == EBADF);
		CHECK(readlinkat(link, "", self, sizeof(self)) == 5 && !memcmp(self, "plain", 5));
		CHECK(write(null, "x", 1) == 1 && read(null, &byte, 1) == 0);
		CHECK(read(zero, &byte, 1) == 1 && byte == 0);
		CHECK(write(full, "x", 1) < 0 && errno == ENOSPC);
		CHECK(read(random, &byte, 1) == 1 && read(urandom, &byte, 1) == 1);
		char text[256] = "";
		CHECK(pread(own_stat, text, sizeof(text) - 1, 0) > 0 && atoi(text) == getpid(), "%s", text);
		CHECK(pread(uptime, text, sizeof(text) - 1, 0) > 0 && pread(sys, text, sizeof(text) - 1, 0) > 0);
		mapped[1] = 'M';
		CHECK(pread(moved, &byte, 1, 1) == 1 && byte == 'M');
		CHECK(pwrite(moved, "1", 1, 1) == 1 && mapped[1] == '1');
		CHECK(private[0] == 'P' && private[1] == '1' && shown[0] == '0');
		harness_report();
	}
	return 0;
}
