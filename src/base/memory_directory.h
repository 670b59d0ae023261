/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory in memory that has no name: images lie in it that are to be nowhere else (of a migration, on both sides;
 * of an image streamer), and are gone when the last descriptor is closed, however criu ends.
 */
#pragma once

#include "base/fail.h"

/*
 * Makes one. @size is how much it may hold, as tmpfs(5) takes it ("100%"); NULL = half of the memory. Returns 0 with a
 * descriptor that openat(2) and its like take, owned by the caller, or a failure.
 */
int memory_directory_open(const char *size, struct failure *failure, int *ret_dirfd);
