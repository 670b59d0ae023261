/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A landlock domain cannot be asked for: no call and no file tells that a thread has one, and none gives out its rules.
 * Restored without it the thread would be freer than it was, so it must be found.
 *
 * What every domain forbids is to look into processes outside of it, whatever else its rules are. So each thread tries
 * to look at a *witness*: a process that nothing but a domain could protect from it. get_robust_list(2) asks whether
 * one may look, and does nothing else of note. For a thread that may look at everything (CAP_SYS_PTRACE), criu itself
 * is the witness. For others it is a bare process that takes on their user and group, gives up its capabilities, says
 * that it may be looked at, and ends; it is not reaped before all have looked. It is a child of criu, and so in criu's
 * own domain, if there is one: that is no loss, the restored tree is in it too.
 *
 * SELinux may forbid the same. A thread whose context is not criu's own is believed, with a warning.
 */
#include "kinds/task/landlock.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "inject/bare_process.h"
#include "kernel/proc.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_status.h"

struct witness {
	uint32_t uid, gid;
	pid_t pid; /* 0 = there can be none */
	bool has_ended;
};

struct landlock_witnesses {
	bool kernel_has_landlock;
	pid_t criu;
	struct witness *items;
	size_t count, capacity;
};

/* ---- witnesses ---- */

static void plan_witness(struct program *program, const void *context)
{
	const struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	const struct __user_cap_data_struct nothing[_LINUX_CAPABILITY_U32S_3] = {};
	const struct witness *witness = context;
	remote_t version = program_copy(program, &header, sizeof(header));
	remote_t none = program_copy(program, nothing, sizeof(nothing));

	PROGRAM_CALL(program, SYS_setresgid, witness->gid, witness->gid, witness->gid);
	PROGRAM_CALL(program, SYS_setresuid, witness->uid, witness->uid, witness->uid);
	PROGRAM_CALL(program, SYS_capset, version.address, none.address);
	PROGRAM_CALL(program, SYS_prctl, PR_SET_DUMPABLE, 1);
}

static struct landlock_witnesses *witnesses_of(struct dump *dump)
{
	if (!dump->landlock) {
		dump->landlock = xcalloc(1, sizeof(*dump->landlock));
		dump->landlock->criu = getpid();
		dump->landlock->kernel_has_landlock =
			syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
	}
	return dump->landlock;
}

static struct witness *find_witness(struct landlock_witnesses *witnesses, uint32_t uid, uint32_t gid)
{
	for (size_t i = 0; i < witnesses->count; i++)
		if (witnesses->items[i].uid == uid && witnesses->items[i].gid == gid)
			return &witnesses->items[i];
	return NULL;
}

static bool may_look_at_all(uint64_t effective)
{
	return effective >> CAP_SYS_PTRACE & 1;
}

/* Does nothing if there is one, or none is needed. */
static void start_witness(struct landlock_witnesses *witnesses, uint32_t uid, uint32_t gid, uint64_t effective)
{
	struct witness witness = {.uid = uid, .gid = gid};

	if (!witnesses->kernel_has_landlock || may_look_at_all(effective) || find_witness(witnesses, uid, gid))
		return;
	pid_t pid = bare_process_start(plan_witness, &witness);
	witness.pid = pid > 0 ? pid : 0;
	ARRAY_GROW(witnesses->items, witnesses->count, witnesses->capacity);
	witnesses->items[witnesses->count++] = witness;
}

/* What it says may have changed when the tree stands: then another one is made. */
void landlock_begin(struct dump *dump)
{
	_cleanup_free_ char *text = NULL;
	char path[48];
	unsigned uid, gid;
	unsigned long effective;

	snprintf(path, sizeof(path), "/proc/%d/status", dump->options->pid);
	if (proc_read_text(AT_FDCWD, path, &text, NULL) < 0)
		return;
	const char *uids = proc_field(text, "Uid"), *gids = proc_field(text, "Gid"),
		   *capabilities = proc_field(text, "CapEff");
	if (uids && gids && capabilities && sscanf(uids, "%u", &uid) == 1 && sscanf(gids, "%u", &gid) == 1 &&
	    sscanf(capabilities, "%lx", &effective) == 1)
		start_witness(witnesses_of(dump), uid, gid, effective);
}

/* Started early: while it becomes what it shall be, the rest of the tree is looked at. */
static int collect_thread(struct dump *dump, struct dump_thread *thread)
{
	const struct thread_status *status;
	int error = thread_status_get(dump, thread, &status);

	if (!error)
		start_witness(witnesses_of(dump), status->uids[0], status->gids[0], status->effective);
	return error;
}

/* Returns its pid, or 0: there is none. */
static pid_t wait_for_witness(struct witness *witness)
{
	if (!witness || !witness->pid)
		return 0;
	if (witness->has_ended)
		return witness->pid;
	witness->has_ended = true;
	if (bare_process_wait(witness->pid) != 0) {
		log_warn("whether processes of user %u, group %u have a landlock domain cannot be found out: criu may "
			 "not take on these ids",
			 witness->uid, witness->gid);
		bare_process_end(witness->pid);
		witness->pid = 0;
	}
	return witness->pid;
}

void landlock_end(struct dump *dump)
{
	struct landlock_witnesses *witnesses = TAKE_POINTER(dump->landlock);

	if (!witnesses)
		return;
	for (size_t i = 0; i < witnesses->count; i++)
		if (witnesses->items[i].pid)
			bare_process_end(witnesses->items[i].pid);
	free(witnesses->items);
	free(witnesses);
}

/* ---- threads ---- */

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	struct landlock_witnesses *witnesses = witnesses_of(dump);
	const struct thread_status *status;
	int error = thread_status_get(dump, thread, &status);
	if (error < 0 || !witnesses->kernel_has_landlock)
		return error;
	pid_t witness = may_look_at_all(status->effective)
				? witnesses->criu
				: wait_for_witness(find_witness(witnesses, status->uids[0], status->gids[0]));
	if (!witness)
		return 0;
	remote_t head = program_reserve(program, sizeof(uint64_t)), length = program_reserve(program, sizeof(uint64_t));
	size_t *step = arena_alloc(&dump->arena, sizeof(*step));
	*step = PROGRAM_TRY(program, SYS_get_robust_list, witness, head.address, length.address);
	*state = step;
	return 0;
}

static bool has_context_of_its_own(const struct dump_task *task)
{
	_cleanup_free_ char *own = NULL, *its = NULL;

	if (proc_read_text(AT_FDCWD, "/proc/self/attr/current", &own, NULL) < 0 ||
	    proc_read_text(task->proc_dirfd, "attr/current", &its, NULL) < 0)
		return false;
	return strcmp(own, its) != 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	if (!state || program_result(program, *(size_t *)state) != -EPERM)
		return 0;
	if (has_context_of_its_own(thread->task)) {
		log_warn("%s: whether thread %d has a landlock domain cannot be found out in its security context",
			 dump_task_name(dump, thread->task), thread->tid);
		return 0;
	}
	return fail(&dump->failure, EOPNOTSUPP, "task-landlock", dump_task_name(dump, thread->task),
		    "start it without the sandbox, or run it and criu inside the same one",
		    "thread %d is in a landlock domain, whose rules the kernel does not give out", thread->tid);
}

const struct task_kind landlock_kind = {
	.name = "landlock",
	.collect_thread = collect_thread,
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
};
