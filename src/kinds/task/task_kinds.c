/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds of task state. The order is that of the calls in a task's last programs; each comment says why. */
#include "kinds/task/task_kind.h"

extern const struct task_kind core_entries_kind, unsupported_state_kind, time_namespace_kind, comm_kind,
	personality_kind, proc_values_kind, robust_list_kind, tid_address_kind, sigaltstack_kind, rseq_kind,
	membarrier_kind, thp_disable_kind, sched_kind, no_new_privs_kind, seccomp_kind, creds_kind, pdeath_signal_kind,
	child_subreaper_kind, sigaction_kind, itimers_kind, posix_timers_kind, pending_kind, rlimits_kind,
	dumpable_kind, file_lock_kind, address_space_kind, thread_settings_kind, keyrings_kind, landlock_kind,
	memory_policies_kind, semaphore_undo_kind;

const struct task_kind *const task_kinds[] = {
	/* Checks what all others rely on. */
	&core_entries_kind,
	/* Refuses before the others ask. */
	&unsupported_state_kind,
	&keyrings_kind,
	&landlock_kind,
	&memory_policies_kind,
	&semaphore_undo_kind,
	&time_namespace_kind,
	/* Need no privileges and depend on nothing. */
	&comm_kind,
	&personality_kind,
	&proc_values_kind,
	&robust_list_kind,
	&tid_address_kind,
	&sigaltstack_kind,
	&rseq_kind,
	&membarrier_kind,
	&thp_disable_kind,
	&address_space_kind,
	&thread_settings_kind,
	/* Better priorities need capabilities that the credentials may take away. */
	&sched_kind,
	/* Cannot be taken back, and forbids nothing that follows. */
	&no_new_privs_kind,
	/* Needs CAP_SYS_ADMIN, so before the credentials; suspended, so the calls below pass. */
	&seccomp_kind,
	&creds_kind,
	/* Taken away by a change of credentials. */
	&pdeath_signal_kind,
	/* From here on only the very last program is concerned. */
	&child_subreaper_kind,
	/* Lost when a descriptor of the file is closed: nothing closes one any more. */
	&file_lock_kind,
	/* Throws pending signals away, so before them; before the timers, which may fire at once. */
	&sigaction_kind,
	/* Empties the queue of what building the tree left in it, so before the timers. */
	&pending_kind,
	&itimers_kind,
	&posix_timers_kind,
	/* Limits pending signals and timers, so behind them. */
	&rlimits_kind,
	/* Reset by every thread's credentials. */
	&dumpable_kind,
	NULL,
};

size_t task_kind_count(void)
{
	return sizeof(task_kinds) / sizeof(task_kinds[0]) - 1;
}
