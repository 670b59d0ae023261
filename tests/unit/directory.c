/* SPDX-License-Identifier: Apache-2.0 */
#include "directory.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void directory_make(char path[DIRECTORY_BYTES])
{
	const char *parent = getenv("TMPDIR");

	if (snprintf(path, DIRECTORY_BYTES, "%s/criu-unit-XXXXXX", parent ?: "/tmp") >= DIRECTORY_BYTES ||
	    !mkdtemp(path)) {
		perror(path);
		exit(1);
	}
}

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *walk)
{
	return remove(path);
}

void directory_remove(const char *path)
{
	nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
