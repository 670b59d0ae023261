/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that only siblings share (restore/foster.c). */
#pragma once

#include "model/restore.h"
#include "restore/tree.h"

/* In a task with its own memory in place, before it forks. Returns 0 or a failure. */
int foster_load(struct restore *restore, const struct restore_tree_node *node);
/* After the last fork: the task's own pages again. Returns 0 or a failure. */
int foster_end(struct restore *restore);
