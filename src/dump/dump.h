/* SPDX-License-Identifier: Apache-2.0 */
/* The dump pipeline: freeze, collect, inspect, write, thaw. */
#pragma once

#include "model/options.h"

#include "stats.pb-c.h"

/*
 * Dumps the tree of options->pid into options->images_dirfd, or explains what stands in the way. On failure the tree
 * runs on as before and the images directory holds nothing new. Fills *ret_stats (times in microseconds) also when
 * it fails. Returns 0 or a failure. With options->explain a blocker is not a failure; *ret_blockers counts them.
 */
int dump_run(const struct dump_options *options, struct failure *failure, DumpStatsEntry *ret_stats,
	     size_t *ret_blockers);

/* Whether this process can be the root of a dump: it is there, and is none that criu cannot stop. Returns 0 or a
 * failure. */
int dump_check_pid(pid_t pid, struct failure *failure);

/* The stages at which options->die_at can end criu, in order, ends with NULL. */
extern const char *const dump_stages[];
