/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a thread's list of semaphore operations to be undone (SEM_UNDO of semop(2)) holds: a BPF program reads it from
 * the kernel's own structures, there is no other way.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct undo_lists;

/* Loads the program; some milliseconds. Never NULL: without BPF no list can be read. */
struct undo_lists *undo_lists_open(void);
/* NULL is fine. */
void undo_lists_close(struct undo_lists *lists);
/* Whether the list of thread @tid, which has one, is empty. Returns 0 or -errno: it cannot be read. */
int undo_lists_is_empty(const struct undo_lists *lists, pid_t tid, bool *ret_empty);
