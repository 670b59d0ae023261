/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static struct {
	int fd;
	enum log_level level;
	int pid;
	uint64_t start_us;
	int split_dirfd;
	const char *split_name; /* NULL = one log for all */
} log_state = {.fd = -1, .level = LOG_LEVEL_WARN};

void log_setup(int fd, enum log_level level)
{
	log_state.fd = fd;
	log_state.level = level;
	log_state.start_us = clock_now_us();
}

void log_move(int fd)
{
	log_state.fd = fd;
}

int log_fd(void)
{
	return log_state.fd;
}

enum log_level log_level(void)
{
	return log_state.level;
}

void log_split(int dirfd, const char *name)
{
	log_state.split_dirfd = dirfd;
	log_state.split_name = name;
}

void log_set_pid(int pid)
{
	char path[4096];

	log_state.pid = pid;
	if (!log_state.split_name || log_state.fd < 0)
		return;
	snprintf(path, sizeof(path), "%s.%d", log_state.split_name, pid);
	int fd = openat(log_state.split_dirfd, path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return; /* the log that all share is better than none */
	/* The number stays, because callers keep it out of the way of what they restore. */
	dup3(fd, log_state.fd, O_CLOEXEC);
	close(fd);
}

void log_line(enum log_level level, const char *file, int line, const char *format, ...)
{
	static const char *const word[] = {[LOG_LEVEL_ERROR] = "Error", [LOG_LEVEL_WARN] = "Warn "};
	char text[1280];
	uint64_t age = clock_now_us() - log_state.start_us;
	va_list arguments;
	int used = snprintf(text, sizeof(text), "(%02u.%06u) ", (unsigned)(age / 1000000), (unsigned)(age % 1000000));

	if (log_state.fd < 0)
		return;
	if (log_state.pid)
		used += snprintf(text + used, sizeof(text) - used, "%6d: ", log_state.pid);
	if (level <= LOG_LEVEL_WARN)
		used += snprintf(text + used, sizeof(text) - used, "%s (%s:%d): ", word[level], file, line);
	va_start(arguments, format);
	used += vsnprintf(text + used, sizeof(text) - used, format, arguments);
	va_end(arguments);
	if (used > (int)sizeof(text) - 2)
		used = sizeof(text) - 2;
	for (char *c = text; c < text + used; c++)
		if ((unsigned char)*c < ' ')
			*c = '?';
	text[used++] = '\n';
	/* One write, so that lines of tasks that share the file do not mix; a full disk must not fail the work. */
	if (write(log_state.fd, text, used) < 0)
		return;
}
