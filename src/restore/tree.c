/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making the processes, with the pids that the images name (clone3 and set_tid).
 *
 * Every process is a fork of its creator. A task brings its private memory into place before it forks its children,
 * so that what they shared copy-on-write is shared again, and becomes a subreaper before there are orphans to adopt.
 * Dead tasks are made like the others, join their group and end with their status when everybody exists.
 */
#include "restore/tree.h"

#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/ns/time_namespace.h"
#include "kinds/task/sched.h"
#include "kinds/task/task_kind.h"
#include "restore/foster.h"
#include "restore/memory.h"
#include "restore/preload.h"
#include "restore/shared.h"

enum { TASK_DEAD = 2, FORK_RETRIES = 50, FORK_RETRY_NS = 10 * 1000 * 1000 };

struct tree_run {
	struct restore *restore;
	void (*task_main)(struct restore *restore) __attribute__((noreturn));
};

static void become(struct tree_run *run, struct restore_tree_node *node, pid_t creator) __attribute__((noreturn));

static void __attribute__((noreturn)) give_up(struct restore *restore)
{
	shared_abort(restore);
	_exit(1);
}

static int fail_taken(struct restore *restore, const struct proc_stat *holder)
{
	struct proc_stat parent = {};
	const char *hint = "end it, or restore in a pid namespace: unshare --pid --fork --mount-proc criu restore …";
	_cleanup_fd_ int fd = holder->state == 'Z' ? proc_open(holder->ppid) : -1;

	if (fd >= 0 && !proc_read_stat(fd, "stat", &parent))
		return fail(&restore->failure, EEXIST, "pid-taken", NULL,
			    "wait until the parent reaps it, end the parent, or restore in a pid namespace: "
			    "unshare --pid --fork --mount-proc criu restore …",
			    "pid %d is taken: process %d (%s) has ended and waits to be reaped by its parent %d (%s)",
			    holder->pid, holder->pid, holder->comm, parent.pid, parent.comm);
	return fail(&restore->failure, EEXIST, "pid-taken", NULL, hint, "pid %d is taken by process %d (%s)",
		    holder->pid, holder->pid, holder->comm);
}

static int fail_pid(struct restore *restore, pid_t pid, int error)
{
	struct proc_stat stat = {};
	_cleanup_fd_ int fd = proc_open(pid);

	if (error == EEXIST && fd >= 0 && !proc_read_stat(fd, "stat", &stat))
		return fail_taken(restore, &stat);
	if (error == EEXIST)
		return fail(&restore->failure, error, "pid-taken", NULL,
			    "restore in a pid namespace: unshare --pid --fork --mount-proc criu restore …",
			    "pid %d is taken, as a process group or session of others", pid);
	return fail_errno(&restore->failure, error, "restore-fork", NULL,
			  error == EPERM ? "run criu as root or with CAP_CHECKPOINT_RESTORE" : NULL,
			  "cannot make process %d", pid);
}

/*
 * A number that is taken may be taken for a moment only, by a loader thread or helper of this restore: it is tried
 * again before it is called taken.
 */
pid_t tree_fork(struct restore *restore, pid_t wanted, uint64_t flags)
{
	struct clone_args args = {
		.flags = flags,
		/* With CLONE_PARENT the kernel takes the exit signal of the creator. */
		.exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
		.set_tid = wanted ? (uint64_t)&wanted : 0,
		.set_tid_size = wanted ? 1 : 0,
	};
	const struct timespec pause = {.tv_nsec = FORK_RETRY_NS};
	pid_t pid;

	for (int tries = 0;; tries++) {
		pid = syscall(SYS_clone3, &args, sizeof(args));
		if (pid >= 0 || errno != EEXIST || tries == FORK_RETRIES)
			break;
		nanosleep(&pause, NULL);
	}
	return pid < 0 ? fail_pid(restore, wanted, errno) : pid;
}

/* Forks a process with the pid that the node asks for. */
static pid_t fork_node(struct tree_run *run, struct restore_tree_node *node, uint64_t flags)
{
	pid_t creator = getpid();

	if (node->task)
		sched_prepare_fork(node->task->core);
	pid_t pid = tree_fork(run->restore, node->pid, flags);
	if (pid == 0)
		become(run, node, creator);
	return pid;
}

static void reap(pid_t pid)
{
	while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
		;
}

static void fork_children(struct tree_run *run, struct restore_tree_node *node, bool before_session)
{
	for (size_t i = 0; i < node->child_count; i++) {
		struct restore_tree_node *child = node->children[i];
		if (child->before_session != before_session)
			continue;
		pid_t pid = fork_node(run, child, 0);
		if (pid < 0)
			give_up(run->restore);
		if (child->ends_after_fork)
			reap(pid);
	}
}

static void die_with_status(const struct restore_task *task)
{
	int status = task->core->tc->exit_code;
	sigset_t all;

	if (!WIFSIGNALED(status))
		_exit(WEXITSTATUS(status));
	prctl(PR_SET_DUMPABLE, 0); /* the core was written when it died the first time */
	signal(WTERMSIG(status), SIG_DFL);
	sigemptyset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	syscall(SYS_kill, getpid(), WTERMSIG(status));
	_exit(128 + WTERMSIG(status));
}

/* ---- process groups ---- */

static bool group_has_leader(const struct restore *restore, pid_t pgid)
{
	return restore_find_task(restore, pgid) != NULL;
}

static bool is_outside_group(const struct restore *restore, const struct restore_task *task)
{
	const struct restore_task *root = restore->tasks[0];

	return tree_inherited_session(restore) && task->sid == root->sid && task->pgid == root->pgid &&
	       !group_has_leader(restore, task->pgid);
}

static bool is_first_member(const struct restore *restore, const struct restore_task *task)
{
	for (size_t i = 0; i < restore->task_count; i++)
		if (restore->tasks[i]->pgid == task->pgid)
			return restore->tasks[i] == task;
	return false;
}

/* A group whose leader is long dead: its number is kept by a helper until the members have joined. */
static int make_group_leader(struct tree_run *run, const struct restore_task *task, pid_t *ret_helper)
{
	struct restore *restore = run->restore;
	pid_t wanted = task->pgid;
	struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)&wanted, .set_tid_size = 1};
	pid_t parent = getpid();

	pid_t pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Who died before that sends nothing. */
		if (getppid() != parent)
			_exit(1);
		for (;;)
			pause();
	}
	if (pid < 0)
		return fail_pid(restore, wanted, errno);
	*ret_helper = pid;
	if (setpgid(pid, pid) < 0)
		return fail_errno(&restore->failure, errno, "restore-group", restore_task_name(restore, task), NULL,
				  "cannot make process group %d", pid);
	return 0;
}

static int join_group(struct tree_run *run, const struct restore_task *task)
{
	struct restore *restore = run->restore;
	bool outside = is_outside_group(restore, task);
	pid_t helper = 0;
	int error = 0;

	if (!shared_is_needed(restore, BARRIER_JOINED))
		return 0;
	if (!outside && task->pgid == task->pid && task->sid != task->pid && setpgid(0, 0) < 0)
		error = fail_errno(&restore->failure, errno, "restore-group", restore_task_name(restore, task), NULL,
				   "cannot make process group %d", task->pgid);
	if (!error && !outside && !group_has_leader(restore, task->pgid) && is_first_member(restore, task))
		error = make_group_leader(run, task, &helper);
	if (!error)
		error = shared_wait(restore, BARRIER_GROUPS);
	if (!error && !outside && task->pgid != task->pid && setpgid(0, task->pgid) < 0)
		error = fail_errno(&restore->failure, errno, "restore-group", restore_task_name(restore, task), NULL,
				   "cannot join process group %d", task->pgid);
	if (!error)
		error = shared_wait(restore, BARRIER_JOINED);
	if (helper) {
		kill(helper, SIGKILL);
		reap(helper);
	}
	return error;
}

/* ---- the life of a process until the whole tree exists ---- */

static int enter_kinds(struct restore *restore, struct restore_task *task)
{
	for (const struct task_kind *const *kind = task_kinds; *kind; kind++) {
		int error = (*kind)->enter ? (*kind)->enter(restore, task) : 0;
		if (error < 0)
			return fail_in(&restore->failure, "%s", restore_task_name(restore, task));
	}
	return 0;
}

static int start_session(struct restore *restore, struct restore_task *task)
{
	if (setsid() < 0)
		return fail_errno(&restore->failure, errno, "restore-session", restore_task_name(restore, task), NULL,
				  "setsid");
	for (const struct fd_kind *const *kind = fd_kinds; *kind && task->state != TASK_DEAD; kind++) {
		int error = (*kind)->session_started ? (*kind)->session_started(restore) : 0;
		if (error < 0)
			return fail_in(&restore->failure, "%s", restore_task_name(restore, task));
	}
	return 0;
}

static void become_helper(struct tree_run *run, struct restore_tree_node *node)
{
	if (node->makes_session && setsid() < 0) {
		fail_errno(&run->restore->failure, errno, "restore-session", NULL, NULL, "cannot make session %d",
			   node->pid);
		give_up(run->restore);
	}
	fork_children(run, node, false);
	_exit(0);
}

static void become(struct tree_run *run, struct restore_tree_node *node, pid_t creator)
{
	struct restore *restore = run->restore;
	struct restore_task *task = node->task;
	int error = 0;

	/* Whoever forked us may die before everything is traced by criu; an orphan's creator ends as planned. */
	if (!node->adopted && !(restore->options->sibling && task == restore->tasks[0])) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != creator) /* it was faster than the call above */
			_exit(1);
	}
	if (!task)
		become_helper(run, node);
	/* A dead task has no memory of its own: what it passes on is its creator's. */
	if (restore->self && restore->self->memory)
		restore->fork_origin = restore->self;
	if (restore->self && restore->self->state != TASK_DEAD)
		restore->creator = restore->self;
	restore->self = task;
	/* Those of our creator are its own. */
	restore->offered_count = 0;
	log_set_pid(task->pid);
	atomic_store(&restore->shared->born[task->index], 1);
	if (task == restore->tasks[0])
		error = time_namespace_enter(restore);
	if (!error && task->state != TASK_DEAD) {
		error = enter_kinds(restore, task);
		if (!error)
			error = memory_restore_private(restore);
		if (!error)
			error = foster_load(restore, node);
	}
	if (error < 0)
		give_up(restore);
	fork_children(run, node, true);
	if (node->makes_session && start_session(restore, task) < 0)
		give_up(restore);
	fork_children(run, node, false);
	if (task->state != TASK_DEAD)
		error = foster_end(restore);
	if (!error)
		error = shared_wait(restore, BARRIER_FORKED);
	if (!error)
		error = join_group(run, task);
	if (error < 0)
		give_up(restore);
	if (task->state == TASK_DEAD) {
		prctl(PR_SET_NAME, task->core->tc->comm);
		die_with_status(task);
	}
	run->task_main(restore);
}

int tree_create(struct restore *restore, struct restore_tree_node *root,
		void (*task_main)(struct restore *restore) __attribute__((noreturn)), pid_t *ret_pid)
{
	struct tree_run run = {restore, task_main};
	pid_t pid = fork_node(&run, root, restore->options->sibling ? CLONE_PARENT : 0);

	if (pid < 0)
		return pid;
	*ret_pid = pid;
	return 0;
}

int tree_become(struct restore *restore, struct restore_tree_node *root,
		void (*task_main)(struct restore *restore) __attribute__((noreturn)), pid_t *ret_pid)
{
	struct tree_run run = {restore, task_main};
	pid_t self = getpid(), parent = getppid();

	/* The new criu needs all that is known and nothing of what was received: no page tables are copied for it. */
	int error = preload_inherit(restore, false);
	if (error < 0)
		return error;
	pid_t pid = tree_fork(restore, 0, CLONE_PARENT);
	if (pid < 0)
		return pid;
	if (pid == 0) {
		restore->shared->criu = getpid();
		*ret_pid = self;
		return 0;
	}
	if (preload_inherit(restore, true) < 0 || shared_watch(restore, BARRIER_STARTED, NULL) < 0)
		give_up(restore);
	become(&run, root, parent);
}
