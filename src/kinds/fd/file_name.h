/* SPDX-License-Identifier: Apache-2.0 */
/* Whether the name that /proc gives for an open file still leads to it. */
#pragma once

#include "model/dump.h"

/* Behind the name of a deleted file that was restored while its own name was in use, with a number. */
#define FILE_NAME_SUBSTITUTE ".criu-"

enum file_name_state {
	FILE_NAME_GOOD, /* the name leads to the file */
	FILE_NAME_GONE, /* it was deleted, or its name is another file now */
};

/*
 * @fd    of the open file, ours
 * @flags it was opened with
 * @link  what /proc says: a path, followed by " (deleted)" if the name was removed
 * @stat  of the open file
 * *ret_name is in the arena: the path, without the suffix. Returns 0 or a failure without an object: a file that has a
 * name which cannot be known.
 */
int file_name_find(struct dump *dump, const struct dump_task *task, int fd, int flags, const char *link,
		   const struct stat *stat, enum file_name_state *ret_state, char **ret_name);

/*
 * A file of procfs: its name says of which process, and it can be opened again if that is in the tree.
 * Returns 0 or a failure without an object.
 */
int file_name_check_proc(struct dump *dump, const char *link);
