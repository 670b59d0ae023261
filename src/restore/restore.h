/* SPDX-License-Identifier: Apache-2.0 */
/* The restore pipeline: read, plan, tree, run the plan in each task, resume. */
#pragma once

#include "model/options.h"

/*
 * Restores the tree in options->images_dirfd. Returns 0 when it runs (or, unless it is detached, has run: then
 * *ret_exit_status is what a shell would call the status of its root, 128 + signal if one ended it) or a failure, after
 * which no process of it is left. With options->exec_command it does not return on success.
 */
int restore_run(const struct restore_options *options, struct failure *failure, int *ret_exit_status);
