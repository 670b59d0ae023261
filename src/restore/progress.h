/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far the restore is. Tasks load their memory themselves, so they count in the memory that all share, and criu,
 * which waits for them, tells the user and the statistics.
 */
#pragma once

#include "model/restore.h"

/* Makes the counters. In criu, first of all. Returns 0 or a failure. */
int progress_create(struct restore *restore);
void progress_free(struct restore *restore);
/* Begins a stage: for the log and for whoever watches. In criu. */
void progress_stage(struct restore *restore, const char *name);
/* Tells how much of the memory is loaded; called from time to time. In criu. */
void progress_report(struct restore *restore);
/* Adds what all tasks have to load to the total. In criu, when the images are read. */
void progress_plan(struct restore *restore);
/* Takes the counts of all tasks into restore->stats. In criu, at the end. */
void progress_collect(struct restore *restore);
