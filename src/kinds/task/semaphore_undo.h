/* SPDX-License-Identifier: Apache-2.0 */
/* Finds operations on System V semaphores that the end of a task would undo, and refuses them. */
#pragma once

#include "model/dump.h"

/*
 * Gets ready before the tree stands: loading a BPF program takes milliseconds. A guess, from the root alone; what is
 * missing then is got later. Returns 0 or a failure.
 */
int semaphore_undo_prepare(struct dump *dump);
/* Takes away what was needed to find out. */
void semaphore_undo_end(struct dump *dump);
