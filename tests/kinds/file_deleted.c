/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that were deleted while they are open or mapped: content, holes, mode and times, several descriptors of one,
 * a name that another file has now, directories, O_TMPFILE. No name may be left behind.
 *
 * The name of 70 is in use, so it gets one beside it.
 * may-differ: fd.70
 */
#include "harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define REPLACED 70
#define NAMELESS 71
#define SPARSE_BYTES (3L << 30)
#define DATA_OFFSET ((1L << 30) + 12345)

static char names_before[4096];

static void list_names(char *names, size_t size)
{
	DIR *directory = opendir(".");
	struct dirent *entry;

	names[0] = '\0';
	while ((entry = readdir(directory))) {
		/* The runner's. */
		if (!strncmp(entry->d_name, "images", strlen("images")))
			continue;
		strncat(names, entry->d_name, size - strlen(names) - 2);
		strcat(names, "/");
	}
	closedir(directory);
}

static int make(const char *path, int flags, const char *content)
{
	int fd = MUST(open(path, flags | O_CREAT | O_EXCL, 0604));

	MUST(write(fd, content, strlen(content)));
	return fd;
}

static int move(int fd, int number)
{
	MUST(dup2(fd, number));
	close(fd);
	return number;
}

static bool has(int fd, off_t offset, const char *content)
{
	char buffer[64];
	size_t length = strlen(content);

	return pread(fd, buffer, length, offset) == (ssize_t)length && !memcmp(buffer, content, length);
}

static void check_link(int fd, const char *name)
{
	char path[64], link[PATH_MAX] = "", expected[PATH_MAX + 64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	snprintf(expected, sizeof(expected), "%s/%s (deleted)", harness_directory(), name);
	CHECK(readlink(path, link, sizeof(link) - 1) > 0 && !strcmp(link, expected), "is %s", link);
}

int main(void)
{
	const struct timespec times[2] = {{1000000000, 5000}, {1100000000, 7000}};
	struct stat stat;

	int simple = make("simple", O_RDWR, "content of simple");
	MUST(unlink("simple"));
	MUST(lseek(simple, 4, SEEK_SET));
	MUST(fchmod(simple, 04751));
	MUST(fchown(simple, 12, 34));
	MUST(fchmod(simple, 04751));
	MUST(futimens(simple, times));

	int first = make("twice", O_RDWR, "written through two");
	int second = MUST(open("twice", O_RDONLY));
	MUST(unlink("twice"));

	int sparse = make("sparse", O_RDWR, "begin");
	MUST(unlink("sparse"));
	MUST(ftruncate(sparse, SPARSE_BYTES));
	MUST(pwrite(sparse, "middle", 6, DATA_OFFSET));

	int replaced = move(make("replaced", O_RDWR, "the old one"), REPLACED);
	MUST(unlink("replaced"));
	close(make("replaced", O_WRONLY, "the new one"));

	int write_only = make("write-only", O_WRONLY | O_APPEND, "log");
	MUST(unlink("write-only"));
	int empty = make("empty", O_RDWR, "");
	MUST(unlink("empty"));
	int nameless = move(MUST(open(".", O_RDWR | O_TMPFILE, 0600)), NAMELESS);
	MUST(write(nameless, "never had a name", 16));
	MUST(mkdir("directory", 0710));
	int inside = make("directory/inside", O_RDWR, "its directory is gone too");
	MUST(unlink("directory/inside"));
	int directory = MUST(open("directory", O_RDONLY | O_DIRECTORY));
	MUST(rmdir("directory"));

	int fd = make("mapped", O_RDWR, "only mapped");
	char *mapped = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	char *again = MUST((char *)mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0));
	MUST(unlink("mapped"));
	close(fd);
	int both = make("both", O_RDWR, "mapped and open");
	char *both_mapped = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0));
	MUST(unlink("both"));
	list_names(names_before, sizeof(names_before));

	harness_ready();
	while (harness_wait_check()) {
		char names[4096];
		list_names(names, sizeof(names));
		CHECK(!strcmp(names, names_before), "names now: %s", names);
		CHECK(has(simple, 0, "content of simple") && lseek(simple, 0, SEEK_CUR) == 4);
		CHECK(!fstat(simple, &stat) && stat.st_mode == (S_IFREG | 04751) && stat.st_uid == 12 &&
		      stat.st_gid == 34 && !stat.st_nlink);
		CHECK(stat.st_mtim.tv_sec == 1100000000 && stat.st_mtim.tv_nsec == 7000, "%ld", stat.st_mtim.tv_sec);
		check_link(simple, "simple");
		CHECK(pwrite(first, "W", 1, 0) == 1 && has(second, 0, "Written through two"));
		CHECK(pwrite(first, "w", 1, 0) == 1 && pwrite(second, "x", 1, 0) < 0);
		CHECK(!fstat(sparse, &stat) && stat.st_size == SPARSE_BYTES && stat.st_blocks < 200, "%ld blocks",
		      stat.st_blocks);
		CHECK(has(sparse, 0, "begin") && has(sparse, DATA_OFFSET, "middle"));
		CHECK(has(replaced, 0, "the old one"));
		fd = open("replaced", O_RDONLY);
		CHECK(fd >= 0 && has(fd, 0, "the new one"));
		close(fd);
		CHECK(write(write_only, "+", 1) == 1 && lseek(write_only, 0, SEEK_CUR) == 4 &&
		      !ftruncate(write_only, 3));
		CHECK(lseek(write_only, 3, SEEK_SET) == 3 && (fcntl(write_only, F_GETFL) & O_APPEND));
		CHECK(!fstat(empty, &stat) && stat.st_size == 0);
		check_link(inside, "directory/inside");
		CHECK(has(nameless, 0, "never had a name") && has(inside, 0, "its directory is gone too"));
		CHECK(!fstat(directory, &stat) && stat.st_mode == (S_IFDIR | 0710) && !stat.st_nlink);
		CHECK(faccessat(directory, ".", F_OK, 0) == 0);
		CHECK(!strcmp(mapped, "only mapped") && !strcmp(again, "only mapped"));
		mapped[0] = 'O';
		CHECK(!strcmp(again, "Only mapped"));
		mapped[0] = 'o';
		both_mapped[0] = 'M';
		CHECK(has(both, 0, "Mapped and open"));
		both_mapped[0] = 'm';
		harness_report();
	}
	return 0;
}
