/* SPDX-License-Identifier: Apache-2.0 */
/* Locks on files: flock(), fcntl() (of a process, or of an open file description), and leases. */
#pragma once

#include "kinds/task/task_kind.h"
#include "model/dump.h"
#include "model/restore.h"

/*
 * Writes filelocks.img, if the tree holds locks. Entry: every descriptor of the tree has its file. Returns 0 or a
 * failure.
 */
int file_locks_dump(struct dump *dump);

/* In criu: reads and checks filelocks.img. Returns 0 or a failure. */
int file_locks_prepare(struct restore *restore);
/*
 * Takes the locks of a task in its very last program, after everything that closes descriptors: closing any descriptor
 * of a file drops the process's fcntl() locks on it.
 */
extern const struct task_kind file_lock_kind;
