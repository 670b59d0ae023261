/* SPDX-License-Identifier: Apache-2.0 */
/* --track-mem and --prev-images-dir: the tracker of a dump, from the keeper and back, and the link to the parents. */
#pragma once

#include "cmd/command.h"
#include "dump/keeper.h"

struct tracking {
	struct keeper_key key; /* root 0: nothing is known of the tree */
	struct memory_tracker *tracker;
	bool made_link;
};

/* --prev-images-dir of a page server: makes the link. Returns 0 or a failure. */
int tracking_link_previous(struct command *command);
/*
 * Before the dump: sets options->tracker if the command line asks for tracking or parents, and makes the link. Whether
 * pages may stay in the parent images is decided here: they must be those of the last dump with this tracking.
 * Returns 0 or a failure.
 */
int tracking_open(struct command *command, struct dump_options *options, struct tracking *ret_tracking);
/*
 * After the dump, whose result is @result: leaves the tracker with the keeper, or ends it. Always to be called after
 * tracking_open(). Returns @result, or the failure to keep it.
 */
int tracking_close(struct command *command, struct tracking *tracking, int result, bool tree_lives);
