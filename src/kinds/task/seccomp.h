/* SPDX-License-Identifier: Apache-2.0 */
/* The image of all seccomp filters of a tree. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* Writes seccomp.img; entry: collected. Returns 0 or a failure. */
int seccomp_write(struct dump *dump);
/*
 * True if this thread installs filters itself, which must happen in its last program: its credentials, which may take
 * the right to do so, then come later still.
 */
bool seccomp_is_late(const struct restore_task *task, const CoreEntry *thread, pid_t tid);
