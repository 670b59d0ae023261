/* SPDX-License-Identifier: Apache-2.0 */
/* System calls that the dump interrupted and that the kernel goes on with from its own memory (restart blocks). */
#pragma once

#include <sys/types.h>

#include "inject/context.h"
#include "model/dump.h"
#include "model/restore.h"

/*
 * Rewrites the registers as the images hold them: a call that is simply repeated points at its instruction again, one
 * with a restart block says restart_syscall and how much time is left (thread_core_entry.restart_*).
 */
int restart_dump(struct dump *dump, struct dump_thread *thread, struct thread_context *context);
/*
 * Makes the stopped thread @tid interrupt the same call with the time that is left, so that the kernel holds the
 * same restart block again. @call: address of a system call instruction. Registers are set afterwards. Returns 0 or
 * a failure.
 */
int restart_arm(struct restore *restore, const CoreEntry *core, pid_t tid, uint64_t call);
/* True if registers_restore() must leave the thread inside the interrupted call. */
bool restart_is_armed(const CoreEntry *core);
