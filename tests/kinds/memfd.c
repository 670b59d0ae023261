/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memfds: content, holes, size, mode, seals of every kind, names, positions, descriptors of other access, mappings
 * with and without a descriptor.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x8U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif

#define SPARSE_BYTES (1L << 40)

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return MUST(open(path, flags));
}

static int make(const char *name, unsigned flags, const char *content)
{
	int fd = MUST(memfd_create(name, flags));

	MUST(write(fd, content, strlen(content)));
	return fd;
}

static bool has(int fd, off_t offset, const char *content)
{
	char buffer[64];
	size_t length = strlen(content);

	return pread(fd, buffer, length, offset) == (ssize_t)length && !memcmp(buffer, content, length);
}

static void check_name(int fd, const char *name)
{
	char path[64], link[PATH_MAX] = "", expected[PATH_MAX];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	snprintf(expected, sizeof(expected), "/memfd:%s (deleted)", name);
	CHECK(readlink(path, link, sizeof(link) - 1) > 0 && !strcmp(link, expected), "is %s", link);
}

static void check_child(void *argument)
{
	int fd = *(int *)argument;

	CHECK(has(fd, 0, "plain memfd"));
	CHECK(pwrite(fd, "child", 5, 100) == 5);
}

int main(void)
{
	struct stat stat;

	int plain = make("plain", 0, "plain memfd");
	MUST(lseek(plain, 3, SEEK_SET));
	MUST(fchmod(plain, 0640));
	int reader = reopen(plain, O_RDONLY | O_CLOEXEC);
	int writer = reopen(plain, O_WRONLY | O_APPEND);
	int path = reopen(plain, O_PATH);
	int namesake = make("plain", MFD_ALLOW_SEALING, "another of this name");
	int deleted = make("name (deleted)", MFD_ALLOW_SEALING, "with a misleading name");
	int unnamed = make("", MFD_ALLOW_SEALING, "");

	int sealed = make("sealed", MFD_ALLOW_SEALING, "cannot change");
	char *sealed_map = MUST((char *)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, sealed, 0));
	MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL));
	int future = make("future", MFD_ALLOW_SEALING, "writable through the old mapping");
	char *future_map = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0));
	MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	int no_exec = memfd_create("no-exec", MFD_NOEXEC_SEAL);
	int no_exec_seals = no_exec < 0 ? 0 : fcntl(no_exec, F_GET_SEALS);

	int sparse = MUST(memfd_create("sparse", 0));
	MUST(ftruncate(sparse, SPARSE_BYTES));
	MUST(pwrite(sparse, "at the end", 10, SPARSE_BYTES - 10));
	MUST(pwrite(sparse, "in the middle", 13, SPARSE_BYTES / 2));

	int closed = make("closed", 0, "only mapped");
	char *mapped = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0));
	char *private = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, closed, 0));
	private[0] = 'P';
	close(closed);
	char *plain_map = MUST((char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 0));
	harness_start_child(check_child, &plain);

	harness_ready();
	while (harness_wait_check()) {
		CHECK(pwrite(plain, "-----", 5, 100) == 5);
		harness_check_children();
		CHECK(has(plain, 0, "plain memfd") && has(plain, 100, "child") && lseek(plain, 0, SEEK_CUR) == 3);
		CHECK(!memcmp(plain_map, "plain memfd", 12));
		CHECK(!ftruncate(plain, 11) && !fstat(plain, &stat) && stat.st_size == 11 &&
		      stat.st_mode == (S_IFREG | 0640));
		CHECK(has(reader, 0, "plain memfd") && pwrite(reader, "x", 1, 0) < 0);
		CHECK(fcntl(reader, F_GETFD) == FD_CLOEXEC && (fcntl(writer, F_GETFL) & O_APPEND));
		CHECK(write(writer, "+", 1) == 1 && !fstat(plain, &stat) && stat.st_size == 12 &&
		      !ftruncate(plain, 11));
		CHECK(lseek(writer, 0, SEEK_SET) == 0 && (fcntl(path, F_GETFL) & O_PATH));
		check_name(plain, "plain");
		CHECK(has(namesake, 0, "another of this name"));
		check_name(deleted, "name (deleted)");
		check_name(unnamed, "");
		CHECK(fcntl(plain, F_GET_SEALS) == F_SEAL_SEAL && fcntl(namesake, F_GET_SEALS) == 0);
		CHECK(fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL));
		CHECK(has(sealed, 0, "cannot change") && !memcmp(sealed_map, "cannot change", 13));
		CHECK(pwrite(sealed, "x", 1, 0) < 0 && errno == EPERM);
		CHECK(fcntl(future, F_GET_SEALS) == F_SEAL_FUTURE_WRITE && pwrite(future, "x", 1, 0) < 0);
		future_map[0] = 'W';
		CHECK(has(future, 0, "Writable through the old mapping"));
		future_map[0] = 'w';
		if (no_exec >= 0)
			CHECK(fcntl(no_exec, F_GET_SEALS) == no_exec_seals && !fstat(no_exec, &stat) &&
			      !(stat.st_mode & 0111));
		CHECK(!fstat(sparse, &stat) && stat.st_size == SPARSE_BYTES && stat.st_blocks < 100, "%ld blocks",
		      stat.st_blocks);
		CHECK(has(sparse, SPARSE_BYTES - 10, "at the end") && has(sparse, SPARSE_BYTES / 2, "in the middle"));
		CHECK(!strcmp(mapped, "only mapped") && !strcmp(private, "Pnly mapped"));
		mapped[1] = 'N';
		CHECK(private[1] == 'n');
		mapped[1] = 'n';
		harness_report();
	}
	return 0;
}
