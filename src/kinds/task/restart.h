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
/* True if the thread was in a call with a restart block. */
bool restart_is_needed(const CoreEntry *core);
/*
 * Makes the stopped thread @tid of @pid interrupt the same call with the time that is left, so that the kernel holds
 * the same restart block again. @call: address of a system call instruction, @scratch: 16 bytes of the task's memory.
 * *ret_result is what the call returned, for registers_restore(). Returns 0 or a failure.
 */
int restart_arm(struct restore *restore, const CoreEntry *core, pid_t pid, pid_t tid, uint64_t call, uint64_t scratch,
		int64_t *ret_result);
/*
 * Completes the registers of @core: a thread that was in a system call is put behind it with the kernel's private
 * result, so that the kernel itself repeats the call or lets a signal end it. @armed_result: what restart_arm() gave,
 * NULL if the call has no restart block.
 */
void restart_context(const CoreEntry *core, const int64_t *armed_result, struct thread_context *context);
