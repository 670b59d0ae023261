/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on System V semaphores that the kernel undoes when a process ends (SEM_UNDO): the end of the dumped task
 * would undo them while its copy believes that it holds what they gave it. Nothing tells of them, but:
 *
 * - without semaphores in the IPC namespace there are none: /proc/sysvipc/sem, once;
 * - a thread without a list has done none: kcmp(2) says whether its list is the same as that of a process that has
 *   just been forked, which has none. Making a thread makes a list too, for both, mostly empty;
 * - what is in a list is in the kernel only: a BPF program reads it (kernel/undo_lists.c). Without, a process of one
 *   thread with a list is refused, and one of several is believed, with a warning.
 */
#include "kinds/task/semaphore_undo.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "inject/bare_process.h"
#include "kernel/proc.h"
#include "kernel/undo_lists.h"
#include "kinds/task/task_kind.h"

struct semaphore_undo {
	bool has_semaphores;
	pid_t without_list; /* a process; 0 = there is none yet */
	struct undo_lists *lists;
	bool warned;
};

static bool has_semaphores(void)
{
	_cleanup_free_ char *text = NULL;

	/* The first line names the columns. */
	return proc_read_text(AT_FDCWD, "/proc/sysvipc/sem", &text, NULL) == 0 && strchrnul(text, '\n')[0] &&
	       strchrnul(text, '\n')[1];
}

static void plan_nothing(struct program *program, const void *context)
{
}

static int begin(struct dump *dump)
{
	struct semaphore_undo *undo = xcalloc(1, sizeof(*undo));

	dump->semaphore_undo = undo;
	undo->has_semaphores = has_semaphores();
	if (!undo->has_semaphores)
		return 0;
	pid_t pid = bare_process_start(plan_nothing, NULL);
	if (pid < 0)
		return fail_errno(&dump->failure, pid, "dump-fork", NULL, NULL,
				  "cannot make a process to compare with");
	undo->without_list = pid;
	bare_process_wait(pid);
	return 0;
}

int semaphore_undo_prepare(struct dump *dump)
{
	int error = begin(dump);
	struct semaphore_undo *undo = dump->semaphore_undo;

	if (!error && undo->without_list &&
	    syscall(SYS_kcmp, dump->options->pid, undo->without_list, KCMP_SYSVSEM, 0, 0) != 0)
		undo->lists = undo_lists_open();
	return error;
}

void semaphore_undo_end(struct dump *dump)
{
	struct semaphore_undo *undo = TAKE_POINTER(dump->semaphore_undo);

	if (!undo)
		return;
	if (undo->without_list)
		bare_process_end(undo->without_list);
	undo_lists_close(undo->lists);
	free(undo);
}

static bool is_refused(struct dump *dump, const struct dump_thread *thread)
{
	bool empty;

	if (!dump->semaphore_undo->lists)
		dump->semaphore_undo->lists = undo_lists_open();
	if (!undo_lists_is_empty(dump->semaphore_undo->lists, thread->tid, &empty))
		return !empty;
	if (thread->task->thread_count == 1)
		return true;
	if (!dump->semaphore_undo->warned)
		log_warn("%s: whether it would undo operations on semaphores (SEM_UNDO) cannot be found out: criu may "
			 "not "
			 "load BPF programs",
			 dump_task_name(dump, thread->task));
	dump->semaphore_undo->warned = true;
	return false;
}

static int compare(struct dump *dump, const struct dump_thread *thread, pid_t other, bool *ret_same)
{
	long order = syscall(SYS_kcmp, thread->tid, other, KCMP_SYSVSEM, 0, 0);

	if (order < 0)
		return fail_errno(&dump->failure, errno, "task-kcmp", dump_task_name(dump, thread->task),
				  "the kernel needs CONFIG_KCMP", "cannot compare its lists of semaphores");
	*ret_same = order == 0;
	return 0;
}

static int collect_thread(struct dump *dump, struct dump_thread *thread)
{
	int error = dump->semaphore_undo ? 0 : begin(dump);
	bool same = false;

	if (error < 0 || !dump->semaphore_undo->has_semaphores)
		return error;
	/* Threads have the list of their leader, unless they have left it. */
	if (thread->tid != thread->task->pid)
		error = compare(dump, thread, thread->task->pid, &same);
	if (!error && !same)
		error = compare(dump, thread, dump->semaphore_undo->without_list, &same);
	if (error < 0 || same || !is_refused(dump, thread))
		return error;
	return fail(&dump->failure, EOPNOTSUPP, "task-semaphore-undo", dump_task_name(dump, thread->task),
		    "dump it when it has given the semaphores back",
		    "thread %d has operations on System V semaphores that the kernel undoes when it ends (SEM_UNDO)",
		    thread->tid);
}

const struct task_kind semaphore_undo_kind = {
	.name = "semaphore undo",
	.collect_thread = collect_thread,
};
