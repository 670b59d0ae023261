/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The area in which the kernel tells a thread its processor (restartable sequences). It is read with the registers
 * (kinds/task/registers.c), because only ptrace can ask; it is registered again by the thread itself.
 */
#include <sys/syscall.h>

#include "kinds/task/task_kind.h"

#include "rseq.pb-c.h"

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	const RseqEntry *rseq = thread->thread_core->rseq_entry;

	if (!rseq || !rseq->rseq_abi_pointer)
		return 0;
	PROGRAM_CALL(program, SYS_rseq, rseq->rseq_abi_pointer, rseq->rseq_abi_size, 0, rseq->signature);
	program_describe(program, "rseq");
	return 0;
}

const struct task_kind rseq_kind = {
	.name = "rseq area",
	.plan_thread = plan_thread,
};
