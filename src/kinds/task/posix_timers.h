/* SPDX-License-Identifier: Apache-2.0 */
/* Timers of timer_create(2). */
#pragma once

#include "model/dump.h"

/* Bytes that the questions about the timers of a collected task take in its leader's program. */
size_t posix_timers_program_bytes(const struct dump_task *task);
