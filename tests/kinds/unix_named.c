/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of unix sockets: absolute and relative paths, in a directory that is no longer the working directory, a
 * removed file, a renamed file, abstract names with any bytes, names the kernel chose.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct named {
	int fd;
	struct sockaddr_un name;
	socklen_t length;
};

static struct named bind_new(int type, const void *path, size_t length)
{
	struct named named = {.fd = MUST(socket(AF_UNIX, type, 0)), .name.sun_family = AF_UNIX};

	memcpy(named.name.sun_path, path, length);
	MUST(bind(named.fd, (struct sockaddr *)&named.name, offsetof(struct sockaddr_un, sun_path) + length));
	named.length = sizeof(named.name);
	MUST(getsockname(named.fd, (struct sockaddr *)&named.name, &named.length));
	return named;
}

static struct named bind_path(int type, const char *path)
{
	return bind_new(type, path, strlen(path) + 1);
}

static void check_name(const struct named *named, int line)
{
	struct sockaddr_un name = {};
	socklen_t length = sizeof(name);

	CHECK(getsockname(named->fd, (struct sockaddr *)&name, &length) == 0 && length == named->length &&
		      !memcmp(&name, &named->name, length),
	      "line %d: %d bytes \"%s\"", line, length, name.sun_path);
}

/* A datagram that is sent to the path arrives at the socket. */
static void check_reached(const char *path, int fd, int line)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	int sender = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	char byte = 0;

	strcpy(name.sun_path, path);
	CHECK(sendto(sender, "x", 1, 0, (struct sockaddr *)&name, sizeof(name)) == 1, "line %d: errno %d", line, errno);
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == 1 && byte == 'x', "line %d", line);
	close(sender);
}

int main(void)
{
	char absolute_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct stat stat_now;
	char raw[] = {0, 'c', 'r', 'i', 'u', 0, '\n', 1, 0, 0, 0, 0};
	int pid = getpid();

	MUST(mkdir("directory", 0755));
	struct named relative = bind_path(SOCK_DGRAM, "directory/relative");
	struct named plain = bind_path(SOCK_DGRAM, "./plain");
	MUST(chmod("plain", 0755));
	MUST(chdir("directory"));
	struct named inside = bind_path(SOCK_DGRAM, "inside");
	MUST(chdir(".."));
	struct named removed = bind_path(SOCK_DGRAM, "removed");
	int to_removed = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(connect(to_removed, (struct sockaddr *)&removed.name, removed.length));
	MUST(unlink("removed"));
	struct named renamed = bind_path(SOCK_DGRAM, "before");
	MUST(rename("before", "after"));
	struct named stream = bind_path(SOCK_STREAM, "only-bound");
	memcpy(raw + 8, &pid, sizeof(pid));
	struct named abstract = bind_new(SOCK_STREAM, raw, sizeof(raw));
	struct named chosen = bind_new(SOCK_DGRAM, "", 0);
	MUST(snprintf(absolute_path, sizeof(absolute_path), "%s/absolute", harness_directory()) <
			     (int)sizeof(absolute_path)
		     ? 0
		     : -1);
	struct named absolute = bind_path(SOCK_DGRAM, absolute_path);

	harness_ready();
	while (harness_wait_check()) {
		char byte;

		check_name(&relative, __LINE__);
		check_name(&plain, __LINE__);
		check_name(&inside, __LINE__);
		check_name(&removed, __LINE__);
		check_name(&renamed, __LINE__);
		check_name(&stream, __LINE__);
		check_name(&abstract, __LINE__);
		check_name(&chosen, __LINE__);
		check_name(&absolute, __LINE__);
		check_reached("directory/relative", relative.fd, __LINE__);
		check_reached("plain", plain.fd, __LINE__);
		check_reached("directory/inside", inside.fd, __LINE__);
		check_reached("after", renamed.fd, __LINE__);
		check_reached(absolute_path, absolute.fd, __LINE__);
		CHECK(send(to_removed, "y", 1, MSG_DONTWAIT) == 1, "errno %d", errno);
		CHECK(recv(removed.fd, &byte, 1, MSG_DONTWAIT) == 1 && byte == 'y');
		CHECK(access("removed", F_OK) < 0 && access("before", F_OK) < 0);
		CHECK(stat("plain", &stat_now) == 0 && (stat_now.st_mode & 07777) == 0755, "mode %o", stat_now.st_mode);
		CHECK(stat("only-bound", &stat_now) == 0 && S_ISSOCK(stat_now.st_mode));
		harness_report();
	}
	return 0;
}
