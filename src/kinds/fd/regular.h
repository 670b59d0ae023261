/* SPDX-License-Identifier: Apache-2.0 */
/* Files that a path leads to: for descriptors, and for mappings, programs, working and root directories. */
#pragma once

#include "kinds/fd/fd_kind.h"

extern const struct fd_kind regular_kind;

/*
 * Dump: the id in files.img of a file that no descriptor table holds (a mapped file, a program, a directory), one
 * for all users of the same file with the same @flags.
 *
 * @fd     a descriptor of ours for the file, O_PATH is enough
 * @link   what /proc says of it, or NULL to ask for it
 * @flags  how it must be opened again (O_RDONLY, O_RDWR …)
 * Returns 0 or a failure without an object.
 */
int regular_dump_fd(struct dump *dump, struct dump_task *task, int fd, const char *link, int flags, uint32_t *ret_id);
/*
 * The same without a descriptor, if the file is known already: 500 processes of one program have one program file. True
 * with *ret_id if it is.
 */
bool regular_is_known(struct dump *dump, const struct stat *stat, const char *link, int flags, uint32_t *ret_id);

/*
 * Restore, in a task: opens the file @id of files.img, which must be one of this kind, with @flags instead of the
 * recorded ones (O_PATH | O_DIRECTORY for a directory, O_RDWR for a mapping). The caller owns *ret_fd (close-on-exec).
 * Returns 0 or a failure.
 */
int regular_open(struct restore *restore, uint32_t id, int flags, int *ret_fd);
/* Whether file @id was made with O_TMPFILE and has no name yet; *ret_flags: what else it was opened with. */
bool regular_is_tmpfile(const struct restore *restore, uint32_t id, int *ret_flags);
/* The path in the images of file @id, NULL if it is not of this kind. */
const char *regular_name(const struct restore *restore, uint32_t id);
