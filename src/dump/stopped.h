/* SPDX-License-Identifier: Apache-2.0 */
/* The tree that `dump --leave-stopped` left behind: `criu kill` and `criu resume`. */
#pragma once

#include "model/options.h"

/*
 * Ends every process of the stopped tree without a word to the peers of its connections, waits until they are gone
 * and removes the network lock of its dump. Nothing is touched if the tree is not stopped or does not fit the images.
 * Returns 0 or a failure.
 */
int stopped_tree_kill(const struct stopped_options *options, struct failure *failure);
/*
 * Lets the stopped tree go on, except for what was stopped before the dump (which only the images know), and removes
 * the network lock of its dump. Returns 0 or a failure.
 */
int stopped_tree_resume(const struct stopped_options *options, struct failure *failure);
