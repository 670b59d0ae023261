/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "model/restore.h"

/*
 * Makes forks cheap for a tree of many processes: see heap.c. In criu, with one thread, before the first fork. What
 * does not work is only slower.
 */
void heap_share(const struct restore *restore);
