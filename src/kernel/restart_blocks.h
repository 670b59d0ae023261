/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel keeps of an interrupted system call that counts its time from its begin (task_struct.restart_block):
 * the point in time at which it ends. No interface tells it; a BPF program reads it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct restart_blocks;

/*
 * Loads the program, some 8 ms: only if a thread needs it, and before the tree stands if that can be known. Never NULL:
 * where this kernel, or what criu may do, does not allow it, restart_blocks_remaining() says so of every call.
 */
struct restart_blocks *restart_blocks_open(void);
/* NULL is fine. */
void restart_blocks_close(struct restart_blocks *blocks);
/* Whether @call is one of those whose restart block is understood: poll, futex, nanosleep, clock_nanosleep. */
bool restart_blocks_knows(uint64_t call);
/*
 * What a stopped thread's interrupted call has left to wait.
 * @tid   in our pid namespace
 * @call  its number
 * @args  its first three arguments: the block must be of this very call
 * Returns whether it is known; *ret_ns may be 0.
 */
bool restart_blocks_remaining(const struct restart_blocks *blocks, pid_t tid, uint64_t call, const uint64_t args[3],
			      uint64_t *ret_ns);
