/* SPDX-License-Identifier: Apache-2.0 */
/* Pending signals. */
#pragma once

#include "model/dump.h"

/*
 * Looks at the queues of the whole tree again, just before the tree is let go or killed, and adds what came in
 * meanwhile, so that no signal is lost. Timers were read before: what they sent since is left out, they will send it
 * again. The threads must be stopped. Returns 0 or a failure.
 */
int pending_refresh(struct dump *dump);
