/* SPDX-License-Identifier: Apache-2.0 */
/* Registers, vector state and the rseq area of one thread: what only ptrace can read and set. */
#pragma once

#include "inject/context.h"
#include "model/dump.h"
#include "model/restore.h"

/* Fills thread->core's thread_info and rseq_entry. The thread is stopped. Returns 0 or a failure. */
int registers_dump(struct dump *dump, struct dump_thread *thread, const struct thread_context *context);
/* Checks at reading time that the entry can be restored on this CPU. Returns 0 or a failure. */
int registers_check(struct restore *restore, const CoreEntry *core);
/*
 * Gives the stopped thread @tid its registers and vector state. @core was checked. Must be the last thing before the
 * thread is let go: it points it into its own code. @interrupted_result: what restart_arm() gave, or NULL. Returns 0
 * or a failure.
 */
int registers_restore(struct restore *restore, const CoreEntry *core, pid_t pid, pid_t tid,
		      const int64_t *interrupted_result);
/* The general registers alone, as the thread will have them. */
void registers_context(const CoreEntry *core, struct thread_context *ret_context);
