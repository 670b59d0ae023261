/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory in memory that has no name: the small images of a migration lie in it, on both sides, and are gone when
 * the last descriptor is closed, however criu ends.
 */
#pragma once

#include "base/fail.h"

/* Makes one. Returns 0 with a descriptor that openat(2) and its like take, owned by the caller, or a failure. */
int memory_directory_open(struct failure *failure, int *ret_dirfd);
