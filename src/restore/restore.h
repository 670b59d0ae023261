/* SPDX-License-Identifier: Apache-2.0 */
/* The restore pipeline: read, plan, make the tree, switch each task, resume. */
#pragma once

#include "model/options.h"

/*
 * Restores the tree in options->images_dirfd. On failure nothing is left: every process that was made is ended.
 * Unless options->detached, waits for the root task: *ret_exit_status is its exit status as a shell would show it.
 * Writes stats-restore into the work directory. Returns 0 or a failure.
 */
int restore_run(const struct restore_options *options, struct failure *failure, int *ret_exit_status);
