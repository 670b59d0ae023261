/* SPDX-License-Identifier: Apache-2.0 */
/* The root of a tree that was let go, and may end by itself like any other process. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Whether it has ended. Then @ret_status is its wait status, or -1 if another criu has let it go, whose child it was.
 * @start_time  of the root: a process with its pid and another one is not it
 */
bool root_has_ended(pid_t pid, uint64_t start_time, int *ret_status);
