/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inotify: watches of directories and files, their numbers, on a renamed directory, on a deleted file.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static void touch(const char *path)
{
	close(MUST(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600)));
}

/* One event waits. */
static void check_event(int fd, int watch, uint32_t mask, const char *name)
{
	char buffer[4096] __attribute__((aligned(8))) = "";
	const struct inotify_event *event = (const void *)buffer;
	ssize_t got = read(fd, buffer, sizeof(buffer));

	CHECK(got >= (ssize_t)sizeof(*event), "%s: no event: %m", name);
	CHECK(got < (ssize_t)sizeof(*event) ||
		      (event->wd == watch && event->mask == mask && !strcmp(event->len ? event->name : "", name)),
	      "watch %d mask %x \"%s\"", event->wd, event->mask, event->len ? event->name : "");
	CHECK(got == (ssize_t)(sizeof(*event) + event->len), "more than one event");
}

int main(void)
{
	int fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC)), empty = MUST(inotify_init1(0));

	MUST(mkdir("directory", 0700));
	MUST(mkdir("before", 0700));
	touch("file");
	int gone = MUST(inotify_add_watch(fd, ".", IN_CREATE));
	int directory = MUST(inotify_add_watch(fd, "directory", IN_CREATE | IN_DELETE));
	int renamed = MUST(inotify_add_watch(fd, "before", IN_CREATE | IN_DELETE));
	MUST(inotify_rm_watch(fd, gone));
	int file = MUST(inotify_add_watch(fd, "file", IN_ATTRIB | IN_EXCL_UNLINK));
	MUST(rename("before", "after"));
	/* Deleted, but open: it can still change. */
	int deleted_fd = MUST(open("deleted", O_RDWR | O_CREAT, 0600));
	int deleted = MUST(inotify_add_watch(fd, "deleted", IN_MODIFY));
	MUST(unlink("deleted"));
	char buffer[4096];
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;

	harness_ready();
	while (harness_wait_check()) {
		CHECK(read(fd, buffer, sizeof(buffer)) == -1 && errno == EAGAIN, "events that nobody made");
		touch("directory/new");
		check_event(fd, directory, IN_CREATE, "new");
		CHECK(unlink("directory/new") == 0);
		check_event(fd, directory, IN_DELETE, "new");
		touch("after/this");
		check_event(fd, renamed, IN_CREATE, "this");
		CHECK(unlink("after/this") == 0);
		check_event(fd, renamed, IN_DELETE, "this");
		CHECK(chmod("file", 0640) == 0);
		check_event(fd, file, IN_ATTRIB, "");
		CHECK(write(deleted_fd, "x", 1) == 1);
		check_event(fd, deleted, IN_MODIFY, "");
		CHECK(inotify_rm_watch(fd, gone) == -1 && errno == EINVAL);
		CHECK(fcntl(empty, F_GETFL) == 0, "0%o", fcntl(empty, F_GETFL));
		harness_report();
	}
	return 0;
}
