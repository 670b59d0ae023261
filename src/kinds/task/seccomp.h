/* SPDX-License-Identifier: Apache-2.0 */
/* The image of all seccomp filters of a tree. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* Writes seccomp.img; entry: collected. Returns 0 or a failure. */
int seccomp_write(struct dump *dump);
/* Frees what the restore read of it. */
void seccomp_forget(struct restore *restore);
