/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "model/restore.h"

/* Makes the calling process the task restore->self. Does not return; reports through the notify descriptor. */
void switch_to_task(struct restore *restore) __attribute__((noreturn));
