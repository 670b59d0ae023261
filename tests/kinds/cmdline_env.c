/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What /proc says about the program itself: command line, environment, executable, auxiliary vector; also after the
 * program wrote over its arguments, as many daemons do.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <unistd.h>

struct content {
	const char *path;
	char bytes[4096];
	ssize_t length;
};

static struct content contents[] = {
	{.path = "/proc/self/cmdline"}, {.path = "/proc/self/environ"}, {.path = "/proc/self/auxv"}};
#define CONTENTS (sizeof(contents) / sizeof(contents[0]))

static ssize_t read_content(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, buffer, size);

	if (fd >= 0)
		close(fd);
	return length;
}

int main(int argc, char **argv)
{
	char executable[512], now[512];

	if (argc == 1) {
		/* Once more, with arguments and an environment that are worth a look. */
		char *arguments[] = {argv[0], "two words", "", "-x", "last", NULL};
		char *environment[] = {"FIRST=1", "EMPTY=", "not-an-assignment", "LAST=end", NULL};
		MUST(execve("/proc/self/exe", arguments, environment));
	}
	memset(argv[1], 'W', strlen(argv[1]));
	MUST((int)readlink("/proc/self/exe", executable, sizeof(executable)));
	void *random = (void *)getauxval(AT_RANDOM);
	char random_bytes[16];
	memcpy(random_bytes, random, 16);
	for (size_t i = 0; i < CONTENTS; i++)
		contents[i].length = MUST(read_content(contents[i].path, contents[i].bytes, sizeof(contents[i].bytes)));

	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < CONTENTS; i++) {
			char buffer[4096];
			ssize_t length = read_content(contents[i].path, buffer, sizeof(buffer));
			CHECK(length == contents[i].length && !memcmp(buffer, contents[i].bytes, length), "%s",
			      contents[i].path);
		}
		memset(now, 0, sizeof(now));
		CHECK(readlink("/proc/self/exe", now, sizeof(now)) > 0 && !strncmp(now, executable, strlen(now)), "%s",
		      now);
		CHECK(getauxval(AT_RANDOM) == (uintptr_t)random && !memcmp(random, random_bytes, 16));
		CHECK(!strcmp(getenv("LAST"), "end") && !strcmp(argv[4], "last") && !strcmp(argv[1], "WWWWWWWWW"));
		harness_report();
	}
	return 0;
}
