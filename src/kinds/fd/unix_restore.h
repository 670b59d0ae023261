/* SPDX-License-Identifier: Apache-2.0 */
/* The restore side of the unix sockets' kind (unix.c); the functions are the operations of struct fd_kind. */
#pragma once

#include "kinds/fd/fd_kind.h"

/* unix_sk_entry.uflags: the entry describes a socket outside the tree, to which one inside is connected. */
#define UNIX_OUTSIDE 1u

extern const struct fd_kind unix_kind;

int unix_prepare(struct restore *restore);
int unix_open(struct restore *restore, struct restore_file *file, int *ret_fd);
int unix_connect(struct restore *restore, struct restore_file *file, int fd);
int unix_finish(struct restore *restore, struct restore_file *file, int fd);
