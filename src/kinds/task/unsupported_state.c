/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a thread can have and the images cannot say: refused before anything is changed.
 * Sharing between processes (CLONE_VM and others) is refused where their ids are made, dump/collect.c.
 */
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kernel/uapi.h"
#include "kinds/task/process_facts.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_facts.h"
#include "kinds/task/thread_status.h"

enum { USER_DISPATCH_OFF = 0 };

static int read_own_namespaces(struct dump *dump)
{
	uint64_t *own = arena_alloc(&dump->arena, THREAD_NAMESPACE_COUNT * sizeof(*own));
	int error = thread_facts_own_namespaces(own);

	if (error < 0)
		return fail_errno(&dump->failure, error, "own-namespace", "/proc/self/ns", "mount /proc",
				  "cannot read criu's own namespaces");
	dump->own_namespaces = own;
	return 0;
}

static int check_namespaces(struct dump *dump, struct dump_thread *thread)
{
	const struct thread_facts *facts = thread->facts;

	if (!dump->own_namespaces && read_own_namespaces(dump) < 0)
		return -dump->failure.error;
	if (facts->namespace_error)
		return fail_errno(&dump->failure, facts->namespace_error, "task-namespace",
				  dump_task_name(dump, thread->task), NULL, "cannot read the namespaces of thread %d",
				  thread->tid);
	for (size_t i = 0; i < THREAD_NAMESPACE_COUNT; i++) {
		const struct thread_namespace *kind = &thread_namespaces[i];
		if (!kind->per_thread && thread->tid != thread->task->pid)
			continue;
		if (facts->namespaces[i] != dump->own_namespaces[i])
			return fail(&dump->failure, EOPNOTSUPP, "task-namespace", dump_task_name(dump, thread->task),
				    "run criu inside the same namespaces: nsenter -t PID -a criu dump …",
				    "thread %d is in another %s namespace than criu (%s)", thread->tid, kind->name,
				    kind->what);
	}
	return 0;
}

/* A thread may have left the process's descriptor table or working directory (unshare). */
static int check_unshared(struct dump *dump, struct dump_thread *thread)
{
	static const struct {
		int type;
		const char *what;
	} resources[] = {{KCMP_FILES, "descriptor table"}, {KCMP_FS, "working directory"}};
	const struct task_objects *own = &thread->facts->objects, *common = &thread->task->threads[0].facts->objects;
	pid_t leader = thread->task->pid;

	if (own->files && own->files == common->files && own->directories == common->directories)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(resources) && thread->tid != leader; i++) {
		long order = syscall(SYS_kcmp, leader, thread->tid, resources[i].type, 0, 0);
		if (order < 0)
			return fail_errno(&dump->failure, errno, "task-kcmp", dump_task_name(dump, thread->task),
					  "the kernel needs CONFIG_KCMP", "cannot compare its threads");
		if (order)
			return fail(&dump->failure, EOPNOTSUPP, "task-thread-unshared",
				    dump_task_name(dump, thread->task), NULL,
				    "thread %d has a %s of its own, apart from its process", thread->tid,
				    resources[i].what);
	}
	return 0;
}

static int check_user_dispatch(struct dump *dump, struct dump_thread *thread)
{
	struct ptrace_sud_config config = {};

	/* Kernels before 6.4 do not tell. */
	if (ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, thread->tid, sizeof(config), &config) < 0 ||
	    config.mode == USER_DISPATCH_OFF)
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "task-user-dispatch", dump_task_name(dump, thread->task), NULL,
		    "thread %d catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH)", thread->tid);
}

/*
 * AppArmor says "profile (enforce)". Restored without the profile the task would be freer than it was. A context of
 * SELinux is had by every process and comes from criu's own at restore.
 */
static int check_confinement(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ char *profile = NULL;

	if (process_facts_take(task, PROCESS_CONFINEMENT, &profile, NULL) < 0)
		return 0;
	*strchrnul(profile, '\n') = '\0';
	if (!strstr(profile, " (enforce)"))
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "task-confined", dump_task_name(dump, task),
		    "start it without the profile: aa-exec -p unconfined", "it is confined by the AppArmor profile %s",
		    profile);
}

static int collect(struct dump *dump, struct dump_task *task)
{
	return task->state == TASK_STATE_DEAD ? 0 : check_confinement(dump, task);
}

static int collect_thread(struct dump *dump, struct dump_thread *thread)
{
	const struct thread_status *status;
	int error = thread_status_get(dump, thread, &status);

	if (error < 0)
		return error;
	if (status->shadow_stack)
		return fail(&dump->failure, EOPNOTSUPP, "task-shadow-stack", dump_task_name(dump, thread->task),
			    "start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK", "thread %d uses a shadow stack",
			    thread->tid);
	error = check_user_dispatch(dump, thread);
	if (!error)
		error = check_unshared(dump, thread);
	return error ? error : check_namespaces(dump, thread);
}

const struct task_kind unsupported_state_kind = {
	.name = "unsupported",
	.collect = collect,
	.collect_thread = collect_thread,
};
