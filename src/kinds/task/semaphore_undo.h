/* SPDX-License-Identifier: Apache-2.0 */
/* Finds operations on System V semaphores that the end of a task would undo, and refuses them. */
#pragma once

#include "model/dump.h"

/* Takes away what was needed to find out. */
void semaphore_undo_end(struct dump *dump);
