/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors of a task being restored (restore/files.c). */
#pragma once

#include "model/restore.h"

/* Moves a descriptor of criu's own above the task's numbers. -1 is left alone. Returns 0 or a failure. */
int files_move_service_fd(struct restore *restore, int *fd);
/* Opens, takes and connects all descriptors of restore->self; waits for the other tasks. Returns 0 or a failure. */
int files_restore(struct restore *restore);
/* Closes everything below @limit but the task's descriptors (which may not exist yet) and @keep. */
void files_close_others(const struct restore *restore, int limit, const int *keep, size_t keep_count);
