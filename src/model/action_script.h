/* SPDX-License-Identifier: Apache-2.0 */
/* Programs of the user that run at named points of a dump or restore (--action-script). */
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "base/fail.h"

struct action_scripts {
	const char *const *paths; /* executables, run in this order */
	size_t count;
	const char *images_dir; /* CRTOOLS_IMAGE_DIR */
};

/*
 * Runs each script without arguments and waits for it; its environment is ours plus CRTOOLS_SCRIPT_ACTION=@action,
 * CRTOOLS_IMAGE_DIR and, if @root_pid > 0, CRTOOLS_INIT_PID (the root of the tree as criu's own pid namespace sees it).
 *
 * @scripts  NULL = none
 * @action   "pre-dump", "post-dump", "network-lock", "network-unlock", "pre-restore", "post-restore", "pre-resume",
 *           "post-resume", "setup-namespaces", "post-setup-namespaces"
 * Returns 0, or a failure at the first script that cannot be run or does not exit with 0; the ones after it are not
 * run. After "pre-" stages a caller gives up, after the others it may go on.
 */
int action_scripts_run(const struct action_scripts *scripts, const char *action, pid_t root_pid,
		       struct failure *failure);
