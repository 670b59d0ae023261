/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child of criu that is nothing but a program: no memory beside the interpreter's, no descriptors, no terminal. So it
 * may take on the ids of a user that must not get at anything of criu's.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "inject/program.h"

/*
 * Starts one that runs what @compose adds to the program and ends: with status 0 if all calls went well. It sends no
 * signal when it ends, and only waits that ask for such children (__WCLONE) find it. Returns its pid or -errno.
 */
pid_t bare_process_start(void (*compose)(struct program *program, const void *context), const void *context);
/* Waits until it has ended, and leaves it there. Returns its exit status, or -errno. */
int bare_process_wait(pid_t pid);
/* Waits until it has ended, and takes it away. */
void bare_process_end(pid_t pid);
