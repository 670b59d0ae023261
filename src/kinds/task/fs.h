/* SPDX-License-Identifier: Apache-2.0 */
/* Working directory, root directory and file mode mask of a process (fs-<pid>.img). */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* Fills task->fs; the directories become files of the dump. Entry: inspected. Returns 0 or a failure. */
int fs_dump(struct dump *dump, struct dump_task *task);
/*
 * In the new process (restore->self), just before it leaves criu's code: afterwards paths mean what they mean to
 * the task. Returns 0 or a failure.
 */
int fs_restore(struct restore *restore);
