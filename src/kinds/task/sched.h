/* SPDX-License-Identifier: Apache-2.0 */
/* The timer slack that a thread goes back to (PR_SET_TIMERSLACK 0): it has it from its creator. */
#pragma once

#include <stdint.h>

#include "core.pb-c.h"

/* What the creator of this thread must have as its own while it makes it. Nanoseconds, never 0. */
uint64_t sched_default_timer_slack_ns(const CoreEntry *core);
/* Gives it to the calling thread, which is going to fork a process with @core. */
void sched_prepare_fork(const CoreEntry *core);
