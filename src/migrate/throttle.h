/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slows a tree down that changes memory faster than the link takes it: it is stopped for a part of each period, from
 * outside, as for a dump, so that neither it nor its parent sees a signal. A thread of criu's does it while the memory
 * is being sent; a dump needs the tree for itself, so it rests meanwhile.
 */
#pragma once

#include <sys/types.h>

#include "base/fail.h"

struct throttle;

/* Returns 0 with a throttle that lets the tree run freely, or a failure. */
int throttle_new(pid_t root_pid, struct failure *failure, struct throttle **ret_throttle);
/* The part of the time that the tree stands, 0 to 99 percent. */
void throttle_set(struct throttle *throttle, unsigned percent);
/* Lets the tree run and does nothing until throttle_go(). On return no thread of the tree is traced. */
void throttle_rest(struct throttle *throttle);
void throttle_go(struct throttle *throttle);
/* Ends it; the tree runs freely. NULL is fine. */
void throttle_free(struct throttle *throttle);
