/* SPDX-License-Identifier: Apache-2.0 */
/* Work on many alike things with all cores. */
#pragma once

#include <stddef.h>

/*
 * Calls @work(@context, index) for each index below @count, in any order, on the calling thread and on one more for
 * each further core, as long as every one gets @worth indices or more. Returns when all calls have returned.
 */
void parallel_for(size_t count, size_t worth, void (*work)(void *context, size_t index), void *context);
