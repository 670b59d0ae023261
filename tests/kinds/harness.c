/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of a test program that talks to the runner.
 *
 * Everything here is plain memory, plain read(2) and write(2) on two fifos: a program whose own kind works needs no
 * other kind than fifos and regular files to be judged.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* One report is one write to a fifo, so it must not be longer than PIPE_BUF. */
#define REPORT_BYTES 3500

struct child {
	pid_t pid;
	int request; /* one byte: check */
	int answer;  /* failures, ended by a newline */
};

static struct {
	pthread_mutex_t lock;
	char failures[REPORT_BYTES];
	size_t failures_length;
	char directory[PATH_MAX];
	struct child children[HARNESS_MAX_CHILDREN];
	size_t child_count;
} harness = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void write_all(int fd, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t written = write(fd, bytes, length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			_exit(99);
		bytes += written;
		length -= written;
	}
}

/* Returns 1 with a byte, or 0 at the end of the file or on an error. */
static int read_byte(int fd, char *ret_byte)
{
	ssize_t got;

	do {
		got = read(fd, ret_byte, 1);
	} while (got < 0 && errno == EINTR);
	return got == 1;
}

static void say(const char *word, const char *text)
{
	char line[REPORT_BYTES + 64];
	int length = snprintf(line, sizeof(line), "%s%s%s\n", word, *text ? " " : "", text);

	write_all(HARNESS_OUTPUT_FD, line, length);
}

static void take_fifo(const char *name, int number)
{
	int fd = open(name, O_RDWR | O_CLOEXEC);

	if (fd < 0 || dup2(fd, number) < 0) {
		fprintf(stderr, "harness: %s: %m (start test programs with test_kinds.py)\n", name);
		exit(98);
	}
	close(fd);
}

static void __attribute__((constructor)) harness_open(void)
{
	/* A program that executes itself again has them already. */
	if (fcntl(HARNESS_CONTROL_FD, F_GETFD) < 0) {
		take_fifo("ctl", HARNESS_CONTROL_FD);
		take_fifo("out", HARNESS_OUTPUT_FD);
	}
	if (!getcwd(harness.directory, sizeof(harness.directory)))
		exit(98);
}

const char *harness_directory(void)
{
	return harness.directory;
}

void harness_ready(void)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	say("ready", pid);
}

bool harness_wait_check(void)
{
	char request;

	return read_byte(HARNESS_CONTROL_FD, &request) && request == 'c';
}

void harness_report(void)
{
	pthread_mutex_lock(&harness.lock);
	say(harness.failures_length ? "FAIL" : "ok", harness.failures);
	harness.failures_length = 0;
	harness.failures[0] = '\0';
	pthread_mutex_unlock(&harness.lock);
}

void harness_skip(const char *format, ...)
{
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	say("SKIP", text);
	_exit(0);
}

void harness_setup_failed(const char *file, int line, const char *expression)
{
	char text[512];

	snprintf(text, sizeof(text), "setting up: %s:%d: %s: %s", file, line, expression, strerror(errno));
	say("FAIL", text);
	_exit(1);
}

static void add_failure(const char *text)
{
	pthread_mutex_lock(&harness.lock);
	size_t room = sizeof(harness.failures) - harness.failures_length;
	int length = snprintf(harness.failures + harness.failures_length, room, "%s%s",
			      harness.failures_length ? " | " : "", text);
	harness.failures_length += (size_t)length < room ? (size_t)length : room - 1;
	pthread_mutex_unlock(&harness.lock);
}

void harness_fail(const char *file, int line, const char *condition, const char *format, ...)
{
	const char *slash = strrchr(file, '/');
	char text[1024];
	va_list arguments;

	/* The macro puts a space before every format, also before none. */
	int length = snprintf(text, sizeof(text), "%s:%d: %s%s", slash ? slash + 1 : file, line, condition,
			      format[1] ? ":" : "");
	va_start(arguments, format);
	if ((size_t)length < sizeof(text) && format[1])
		vsnprintf(text + length, sizeof(text) - length, format, arguments);
	va_end(arguments);
	for (char *c = text; *c; c++)
		if (*c == '\n')
			*c = ' ';
	add_failure(text);
}

static void __attribute__((noreturn)) serve_as_child(struct child *self, void (*check)(void *), void *argument)
{
	char request;

	while (read_byte(self->request, &request)) {
		check(argument);
		write_all(self->answer, harness.failures, harness.failures_length);
		write_all(self->answer, "\n", 1);
		harness.failures_length = 0;
		harness.failures[0] = '\0';
	}
	_exit(0);
}

pid_t harness_start_child(void (*check)(void *argument), void *argument)
{
	int request[2], answer[2];

	if (harness.child_count == HARNESS_MAX_CHILDREN) {
		errno = ENOSPC;
		harness_setup_failed(__FILE__, __LINE__, "too many children");
	}
	MUST(pipe(request));
	MUST(pipe(answer));
	pid_t pid = MUST(fork());
	if (pid == 0) {
		struct child self = {.request = request[0], .answer = answer[1]};
		close(request[1]);
		close(answer[0]);
		for (size_t i = 0; i < harness.child_count; i++) {
			close(harness.children[i].request);
			close(harness.children[i].answer);
		}
		harness.child_count = 0;
		close(HARNESS_CONTROL_FD);
		serve_as_child(&self, check, argument);
	}
	close(request[0]);
	close(answer[1]);
	harness.children[harness.child_count++] =
		(struct child){.pid = pid, .request = request[1], .answer = answer[0]};
	return pid;
}

static void check_child(struct child *child)
{
	char text[REPORT_BYTES], byte;
	size_t length = 0;

	if (write(child->request, "c", 1) != 1) {
		CHECK(false, "child %d cannot be asked: %m", child->pid);
		return;
	}
	for (;;) {
		if (!read_byte(child->answer, &byte)) {
			CHECK(false, "child %d gave no answer", child->pid);
			return;
		}
		if (byte == '\n')
			break;
		if (length < sizeof(text) - 1)
			text[length++] = byte;
	}
	text[length] = '\0';
	if (length > 0)
		add_failure(text);
}

void harness_check_children(void)
{
	/* A dead child shall fail its check, not end this program. */
	void (*before)(int) = signal(SIGPIPE, SIG_IGN);

	for (size_t i = 0; i < harness.child_count; i++)
		check_child(&harness.children[i]);
	signal(SIGPIPE, before);
}

int64_t harness_clock_ns(int clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}
