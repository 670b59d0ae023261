/* SPDX-License-Identifier: Apache-2.0 */
/* Working directory, root directory and file mode mask, of a process and of children with others. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static mode_t mask_now(void)
{
	mode_t mask = umask(0);

	umask(mask);
	return mask;
}

static void check_file(const char *path, mode_t expected)
{
	struct stat stat;
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0666);

	CHECK(fd >= 0, "%s: %m", path);
	CHECK(!fstat(fd, &stat) && (stat.st_mode & 0777) == expected, "%s: mode %o", path, stat.st_mode);
	close(fd);
	CHECK(!unlink(path), "%s: %m", path);
}

static void check_deep(void *argument)
{
	char now[PATH_MAX], expected[PATH_MAX];
	static bool is_set;

	if (!is_set) {
		MUST(chdir("one/two"));
		umask(077);
		is_set = true;
	}
	snprintf(expected, sizeof(expected), "%s/one/two", harness_directory());
	CHECK(getcwd(now, sizeof(now)) && !strcmp(now, expected), "%s", now);
	CHECK(mask_now() == 077);
	check_file("deep", 0600);
	CHECK(!access("../../one", F_OK));
}

/* Inside a root of its own. */
static void check_jailed(void *argument)
{
	char now[PATH_MAX];
	static bool is_set;

	if (!is_set) {
		MUST(chroot("jail"));
		MUST(chdir("/cell"));
		umask(0);
		is_set = true;
	}
	CHECK(getcwd(now, sizeof(now)) && !strcmp(now, "/cell"), "%s", now);
	CHECK(!access("/marker", F_OK) && access("/proc", F_OK) < 0);
	check_file("/cell/file", 0666);
	/* No way out. */
	CHECK(!access("../../../../marker", F_OK));
}

/* A root of its own, but the working directory outside of it. */
static void check_outside(void *argument)
{
	static bool is_set;

	if (!is_set) {
		MUST(chdir("one"));
		MUST(chroot("../jail"));
		is_set = true;
	}
	CHECK(!access("/marker", F_OK));
	CHECK(!access("two", F_OK) && !access("../jail", F_OK));
	check_file("outside", 0644);
}

int main(void)
{
	char now[PATH_MAX];

	if (geteuid() != 0)
		harness_skip("needs root");
	MUST(mkdir("one", 0755));
	MUST(mkdir("one/two", 0755));
	MUST(mkdir("jail", 0755));
	MUST(mkdir("jail/cell", 0755));
	close(MUST(open("jail/marker", O_CREAT | O_RDWR, 0644)));
	umask(022);
	harness_start_child(check_deep, NULL);
	harness_start_child(check_jailed, NULL);
	harness_start_child(check_outside, NULL);
	harness_check_children();
	umask(027);
	harness_ready();
	while (harness_wait_check()) {
		CHECK(getcwd(now, sizeof(now)) && !strcmp(now, harness_directory()), "%s", now);
		CHECK(mask_now() == 027);
		check_file("here", 0640);
		harness_check_children();
		harness_report();
	}
	return 0;
}
