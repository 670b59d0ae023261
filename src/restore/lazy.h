/* SPDX-License-Identifier: Apache-2.0 */
/* `restore --lazy-pages`: memory that `criu lazy-pages` brings when the task runs (model/lazy_memory.h). */
#pragma once

#include "model/restore.h"

/* In criu, before the first process: connects to the daemon. Nothing happens without --lazy-pages. 0 or a failure. */
int lazy_connect(struct restore *restore);
/* Whether pages of this mapping come later. */
bool lazy_mapping(const struct restore *restore, const VmaEntry *vma);
/*
 * In the task, when its memory is mapped and nobody has touched it: registers the mappings that are lazy and hands them
 * to the daemon, which serves them from now on. Returns 0 or a failure.
 */
int lazy_hand_over(struct restore *restore);
