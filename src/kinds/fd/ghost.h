/* SPDX-License-Identifier: Apache-2.0 */
/* The content of files that have no name any more: ghost-file-<id>.img. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/*
 * Writes the file behind @fd (O_PATH is enough) with its holes, owner, mode and times to ghost-file-<id>.img.
 * Refuses it above options->ghost_limit_bytes. Returns 0 or a failure without an object.
 */
int ghost_dump(struct dump *dump, int fd, const struct stat *stat, uint32_t id);

/*
 * Makes the file of ghost-file-<id>.img near @path without leaving a name behind. *ret_fd is an O_PATH descriptor of
 * it, the caller's. Returns 0 or a failure.
 * @tmpfile_flags  the file never had a name and may get one: *ret_fd is opened with these and O_TMPFILE; -1 = not so.
 *                 Where the file system cannot do that, it is made like others, with a warning, and opened with the
 *                 flags alone
 */
int ghost_make(struct restore *restore, uint32_t id, const char *path, int tmpfile_flags, int *ret_fd);

/*
 * Gives the file behind @fd, which has another name (or none but may have one), the name @path for an instant, so
 * that /proc shows the restored file under its old name. *ret_fd is an O_PATH descriptor opened by that name, or the
 * old one if the name is in use. Takes ownership of @fd. Never fails.
 */
int ghost_rename(int fd, const char *path);
