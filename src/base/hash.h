/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xxh3, with the widest vectors that this CPU has where the library can choose at run time: its plain entries are built
 * for the oldest x86-64, and take five times as long for a block that is in the cache. Same names, same values.
 */
#pragma once

#include <xxhash.h>

#ifdef XXHASH_CHOOSES_VECTORS
#include <xxh_x86dispatch.h>
#endif
