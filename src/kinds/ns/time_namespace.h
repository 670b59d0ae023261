/* SPDX-License-Identifier: Apache-2.0 */
/* The clocks of the tree: CLOCK_MONOTONIC and CLOCK_BOOTTIME never go back, wherever it is restored. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* Writes timens-0.img: what the clocks show to the tree. Returns 0 or a failure. */
int time_namespace_write(struct dump *dump);

/* Reads and checks timens-0.img, which may be missing, and decides where the tree will live. Returns 0 or a failure. */
int time_namespace_read(struct restore *restore);
/*
 * In the new root process, single-threaded, before it has children: moves it into a time namespace of its own, if the
 * clocks would show something else there than they did. Returns 0 or a failure.
 */
int time_namespace_enter(struct restore *restore);
