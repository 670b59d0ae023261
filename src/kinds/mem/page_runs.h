/* SPDX-License-Identifier: Apache-2.0 */
/* The list of page runs of one task, while it is made: by the scan, then finer by the search for shared pages. */
#pragma once

#include "kinds/mem/memory.h"

/* Appends @run, or lengthens the last run if it goes on in the same way. Addresses ascend. */
void page_runs_add(struct memory_map *memory, const struct page_run *run);
/* Finds the pages that tasks share since a fork, and gives their runs a source. Returns 0 or a failure. */
int page_share_find(struct dump *dump);
/*
 * Gives a source to pages that hold the same as a page of another task, in trees of many small tasks. Adds their number
 * to *ret_found. Returns 0 or a failure.
 */
int page_equal_find(struct dump *dump, uint64_t *ret_found);
