/* SPDX-License-Identifier: Apache-2.0 */
/* What a running tree needs of the machine it runs on, read from /proc. */
#pragma once

#include <sys/types.h>

#include "base/arena.h"
#include "base/fail.h"

#include "migrate.pb-c.h"

/*
 * Fills ids, files, listeners, mounts, memory_bytes, ghost_bytes, kernel and processor of *request; everything that
 * it points to lies in the arena. Tasks and descriptors that vanish meanwhile are left out.
 * Returns 0 or a failure if the root is gone.
 */
int preflight_collect(pid_t root, struct arena *arena, PreflightRequest *request, struct failure *failure);
