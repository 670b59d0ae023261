/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that was deleted under the name it was opened by and has another name: --link-remap keeps it one file.
 *
 * criu-dump: --link-remap
 */
#include "harness.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void)
{
	struct stat open_file, named;
	char text[8] = "";

	int fd = MUST(open("opened", O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(write(fd, "shared", 6));
	MUST(link("opened", "other-name"));
	MUST(unlink("opened"));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(!fstat(fd, &open_file) && !stat("other-name", &named));
		CHECK(open_file.st_ino == named.st_ino && open_file.st_nlink >= 1);
		CHECK(lseek(fd, 0, SEEK_CUR) == 6 && pread(fd, text, 6, 0) == 6 && !strcmp(text, "shared"));
		CHECK(access("opened", F_OK) < 0);
		harness_report();
	}
	return 0;
}
