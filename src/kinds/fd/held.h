/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors that criu opens before any process of a restore exists, and that every task inherits: files without a
 * name (deleted files, memfds) that several tasks open again through /proc/self/fd.
 */
#pragma once

#include "model/restore.h"

/*
 * Moves *fd to a number that no descriptor table of the restored tree uses, so that it is never in the way. Called in
 * criu itself, from a kind's `prepare`; tasks close their copies when they leave criu's code.
 * Returns 0 or a failure; *fd is the new number.
 */
int held_keep(struct restore *restore, int *fd);
/* Opens the file behind a held descriptor once more. Returns the new descriptor (close-on-exec) or -errno. */
int held_open(int held, int flags);
