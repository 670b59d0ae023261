/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel/proc.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sys/syscall.h>

#include "base/fd.h"

int proc_open(pid_t pid)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	return fd;
}

/* The fields behind the command name, which itself may hold blanks and parentheses: field 3 is values[0]. */
static int parse_fields(const char *text, uint64_t *values, size_t count)
{
	size_t i = 0;

	for (; i < count; i++) {
		char *end;
		values[i] = strtoull(text, &end, 10);
		if (end == text)
			break;
		text = end;
	}
	return i == count ? 0 : -EPROTO;
}

int proc_read_stat(int proc_dirfd, const char *path, struct proc_stat *ret_stat)
{
	enum { FIRST_FIELD = 4, FIELD_COUNT = 49 };
	uint64_t values[FIELD_COUNT];
	struct proc_stat stat = {};
	char text[1024];
	_cleanup_fd_ int fd = openat(proc_dirfd, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	ssize_t length = read(fd, text, sizeof(text) - 1);
	if (length < 0)
		return -errno;
	text[length] = '\0';
	char *open = strchr(text, '('), *close = strrchr(text, ')');
	if (!open || !close || close < open || !close[1] || !close[2])
		return -EPROTO;
	stat.pid = strtol(text, NULL, 10);
	*close = '\0';
	snprintf(stat.comm, sizeof(stat.comm), "%s", open + 1);
	stat.state = close[2];
	if (parse_fields(close + 3, values, FIELD_COUNT) < 0)
		return -EPROTO;
#define FIELD(number) values[(number)-FIRST_FIELD]
	stat.ppid = FIELD(4);
	stat.pgrp = FIELD(5);
	stat.session = FIELD(6);
	stat.flags = FIELD(9);
	stat.thread_count = FIELD(20);
	stat.start_time = FIELD(22);
	stat.resident_pages = FIELD(24);
	stat.start_code = FIELD(26);
	stat.end_code = FIELD(27);
	stat.start_stack = FIELD(28);
	stat.start_data = FIELD(45);
	stat.end_data = FIELD(46);
	stat.start_brk = FIELD(47);
	stat.arg_start = FIELD(48);
	stat.arg_end = FIELD(49);
	stat.env_start = FIELD(50);
	stat.env_end = FIELD(51);
	stat.exit_code = FIELD(52);
#undef FIELD
	*ret_stat = stat;
	return 0;
}

int proc_read_text(int dirfd, const char *path, char **ret_text, size_t *ret_length)
{
	enum { BUFFER_BYTES = 4096, SURELY_ALL_BYTES = BUFFER_BYTES / 2 };
	char text[BUFFER_BYTES];
	_cleanup_fd_ int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (length < 0)
		return -errno;
	if (length >= SURELY_ALL_BYTES)
		return read_text_at(dirfd, path, ret_text, ret_length);
	text[length] = '\0';
	*ret_text = xmemdup(text, length + 1);
	if (ret_length)
		*ret_length = length;
	return 0;
}

struct kernel_dirent {
	uint64_t inode;
	int64_t offset;
	uint16_t length;
	uint8_t type;
	char name[];
};

static int compare_numbers(const void *left, const void *right)
{
	return *(const int *)left < *(const int *)right ? -1 : *(const int *)left > *(const int *)right;
}

int proc_list_numbers(int proc_dirfd, const char *path, int **ret_numbers, size_t *ret_count)
{
	_cleanup_fd_ int fd = openat(proc_dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_free_ char *buffer = NULL;
	_cleanup_free_ int *numbers = NULL;
	size_t count = 0, capacity = 0;
	enum { BUFFER_BYTES = 64 * 1024 };

	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	buffer = xcalloc(1, BUFFER_BYTES);
	for (;;) {
		long length = syscall(SYS_getdents64, fd, buffer, BUFFER_BYTES);
		if (length < 0)
			return errno == ENOENT ? -ESRCH : -errno;
		if (!length)
			break;
		for (long at = 0; at < length;) {
			struct kernel_dirent *entry = (void *)(buffer + at);
			at += entry->length;
			if (entry->name[0] < '0' || entry->name[0] > '9')
				continue;
			ARRAY_GROW(numbers, count, capacity);
			numbers[count++] = strtol(entry->name, NULL, 10);
		}
	}
	if (count)
		qsort(numbers, count, sizeof(*numbers), compare_numbers);
	*ret_numbers = TAKE_POINTER(numbers);
	*ret_count = count;
	return 0;
}

int proc_read_children(int proc_dirfd, pid_t tid, pid_t **children, size_t *count, size_t *capacity)
{
	_cleanup_free_ char *text = NULL;
	char path[48];

	snprintf(path, sizeof(path), "task/%d/children", tid);
	int error = proc_read_text(proc_dirfd, path, &text, NULL);
	if (error < 0)
		return error == -ENOENT ? -ESRCH : error;
	for (char *at = text;;) {
		char *end;
		long pid = strtol(at, &end, 10);
		if (end == at)
			return 0;
		at = end;
		ARRAY_GROW(*children, *count, *capacity);
		(*children)[(*count)++] = pid;
	}
}

const char *proc_field(const char *text, const char *name)
{
	size_t length = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		if (*line == '\n')
			line++;
		if (!strncmp(line, name, length) && line[length] == ':') {
			line += length + 1;
			while (*line == ' ' || *line == '\t')
				line++;
			return line;
		}
	}
	return NULL;
}

static uint64_t meminfo_bytes(const char *text, const char *name)
{
	const char *value = proc_field(text, name);

	return value ? strtoull(value, NULL, 10) << 10 : 0;
}

uint64_t proc_free_memory_bytes(void)
{
	_cleanup_free_ char *text = NULL;

	if (proc_read_text(AT_FDCWD, "/proc/meminfo", &text, NULL) < 0)
		return UINT64_MAX;
	return meminfo_bytes(text, "MemAvailable") + meminfo_bytes(text, "SwapFree");
}

char proc_await_stop(pid_t pid, pid_t tid)
{
	enum { TRIES = 400, PAUSE_NS = 250 * 1000 };
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	struct proc_stat stat;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	for (int tries = 0;; tries++) {
		if (proc_read_stat(AT_FDCWD, path, &stat))
			return 'X';
		if (strchr("TtZXx", stat.state) || tries == TRIES)
			return stat.state;
		nanosleep(&pause, NULL);
	}
}
