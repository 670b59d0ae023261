/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that were made without a name (O_TMPFILE) and can still get one: each check gives them their names, looks at
 * the files under these names, and makes new ones.
 */
#include "harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLAIN 70
#define REOPENED 71
#define MAPPED 72
#define READ_ONLY 73
#define PAGE_BYTES 4096
#define LARGE_FILE 0100000 /* of the kernel; the library has none here */

static const char content[] = "a file without a name so far";
static char *mapped;

static void make(int number, int flags)
{
	int fd = MUST(open(".", flags | O_TMPFILE, 0640));

	MUST(dup2(fd, number));
	close(fd);
	MUST(write(number, content, sizeof(content)));
	MUST(lseek(number, 5, SEEK_SET));
}

static void make_all(void)
{
	char path[64];
	int fd;

	make(PLAIN, O_WRONLY | O_APPEND);
	make(REOPENED, O_RDWR);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", REOPENED);
	fd = MUST(open(path, O_RDONLY));
	MUST(dup2(fd, READ_ONLY));
	close(fd);
	make(MAPPED, O_RDWR);
	mapped = MUST((char *)mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, MAPPED, 0));
}

static void check_named(const char *name)
{
	char text[sizeof(content)] = "";
	struct stat stat;
	int fd = open(name, O_RDONLY);

	CHECK(fd >= 0 && read(fd, text, sizeof(text)) == sizeof(text) && !strcmp(text, content), "%s: \"%s\"", name,
	      text);
	CHECK(!fstat(fd, &stat) && stat.st_nlink == 1 && stat.st_mode == (S_IFREG | 0640), "%s: %lu names, mode %o",
	      name, stat.st_nlink, stat.st_mode);
	close(fd);
	unlink(name);
}

static void check_file(int fd, int flags)
{
	char path[64], name[64];

	CHECK(lseek(fd, 0, SEEK_CUR) == 5, "%d: %ld", fd, lseek(fd, 0, SEEK_CUR));
	CHECK((fcntl(fd, F_GETFL) & ~LARGE_FILE) == (flags | O_TMPFILE), "%d: %o", fd, fcntl(fd, F_GETFL));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	snprintf(name, sizeof(name), "name-of-%d", fd);
	CHECK(!linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW), "%d: %m", fd);
	check_named(name);
}

static void check_all(void)
{
	char first;

	mapped[0] = 'A';
	CHECK(pread(MAPPED, &first, 1, 0) == 1 && first == 'A');
	mapped[0] = 'a';
	CHECK(pread(READ_ONLY, &first, 1, 0) == 1 && first == 'a');
	CHECK((fcntl(READ_ONLY, F_GETFL) & O_TMPFILE) != O_TMPFILE, "%o", fcntl(READ_ONLY, F_GETFL));
	CHECK(pwrite(REOPENED, "X", 1, 0) == 1 && pread(READ_ONLY, &first, 1, 0) == 1 && first == 'X');
	CHECK(pwrite(REOPENED, "a", 1, 0) == 1);
	check_file(PLAIN, O_WRONLY | O_APPEND);
	check_file(REOPENED, O_RDWR);
	check_file(MAPPED, O_RDWR);
	close(READ_ONLY);
	munmap(mapped, PAGE_BYTES);
}

int main(void)
{
	int probe = open(".", O_WRONLY | O_TMPFILE, 0600);

	if (probe < 0)
		harness_skip("this file system has no O_TMPFILE: %m");
	close(probe);
	make_all();
	harness_ready();
	while (harness_wait_check()) {
		check_all();
		make_all();
		harness_report();
	}
	return 0;
}
