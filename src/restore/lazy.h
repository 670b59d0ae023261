/* SPDX-License-Identifier: Apache-2.0 */
/* `restore --lazy-pages`: memory that `criu lazy-pages` brings when the task runs (model/lazy_memory.h). */
#pragma once

#include "model/restore.h"

/* In criu, before the first process: connects to the daemon. Nothing happens without --lazy-pages. 0 or a failure. */
int lazy_connect(struct restore *restore);
/*
 * Whether all pages of this mapping come later. After a migration only single pages do (restore_memory.later); what is
 * there is loaded or in place as ever.
 */
bool lazy_mapping(const struct restore *restore, const VmaEntry *vma);
/* Whether some pages of this mapping of the task come later. */
bool lazy_pages_missing(const struct restore *restore, const struct restore_task *task, const VmaEntry *vma);
/*
 * In the task, before memory in which pages are missing is mapped or taken over. Until lazy_hand_over() nobody may
 * fill them: the kernel's own huge pages would, with zeros. Returns 0 or a failure.
 */
int lazy_prepare(struct restore *restore);
/*
 * In the task, when its memory is mapped and nobody has touched it: registers the mappings that are lazy and hands them
 * to the daemon, which serves them from now on. Returns 0 or a failure.
 */
int lazy_hand_over(struct restore *restore);
