/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a restore, in criu, by ptrace.
 *
 * Entry: every thread of the tree has run its program, has reported and waits. All are seized with
 * EXITKILL: if criu dies now, nothing stays. Then: dead tasks are waited for and stopped ones are stopped, so that
 * what the kernel queues to their parents is there before the last programs throw it away; the last programs queue
 * the real signals and start the timers; the stage is unmapped; registers are set; all are let go.
 */
#include "restore/resume.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/log.h"
#include "inject/context.h"
#include "inject/ptrace.h"
#include "kernel/proc.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/task/registers.h"
#include "kinds/task/restart.h"
#include "kinds/task/task_kind.h"
#include "restore/progress.h"
#include "restore/shared.h"
#include "restore/stage.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

#define UNTIL_CLOSED SIZE_MAX

enum { TASK_DEAD = 2, TASK_STOPPED = 3, CHECK_INTERVAL_MS = 20 };

static bool is_live(const struct restore_task *task)
{
	return task->state != TASK_DEAD;
}

static int seize(struct restore *restore, pid_t tid)
{
	int options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD;

	if (ptrace(PTRACE_SEIZE, tid, 0, options | PTRACE_O_SUSPEND_SECCOMP) < 0 &&
	    ptrace(PTRACE_SEIZE, tid, 0, options) < 0)
		return fail_errno(&restore->failure, errno, "restore-seize", NULL, NULL, "cannot trace thread %d", tid);
	return 0;
}

int resume_seize_leaders(struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++) {
		int error = is_live(restore->tasks[i]) ? seize(restore, restore->tasks[i]->pid) : 0;
		if (error < 0)
			return atomic_load(&restore->shared->aborted) ? -ECANCELED : error;
	}
	return 0;
}

int resume_check_alive(struct restore *restore)
{
	progress_report(restore);
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, __WALL | WNOHANG);
		/* The root of a migration is no child of ours. */
		if (pid <= 0 && restore->options->preload && kill(restore->tasks[0]->pid, 0) < 0 && errno == ESRCH)
			return fail(&restore->failure, ECHILD, "restore-died", NULL, NULL,
				    "process %d ended while it was being restored", restore->tasks[0]->pid);
		if (pid <= 0 || atomic_load(&restore->shared->aborted))
			return 0;
		int signal = WIFSTOPPED(status) ? WSTOPSIG(status) : WIFSIGNALED(status) ? WTERMSIG(status) : 0;
		/* Stop signals from outside are of no use before the tree runs; whatever else arrives is a crash. */
		if (WIFSTOPPED(status) && (status >> 16 || signal == SIGSTOP || signal == SIGCHLD)) {
			ptrace(PTRACE_CONT, pid, 0, 0);
			continue;
		}
		if (WIFSTOPPED(status))
			kill(pid, SIGKILL);
		return fail(&restore->failure, ECHILD, "restore-died", NULL, NULL,
			    signal ? "process %d was ended by signal %d while it was being restored"
				   : "process %d ended while it was being restored (%d)",
			    pid, signal);
	}
}

int resume_check_standing(struct restore *restore)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, __WALL | WNOHANG)) > 0)
		if (!WIFSTOPPED(status))
			return fail(&restore->failure, ECHILD, "restore-died", NULL, NULL,
				    "process %d was ended from outside before it ran", pid);
	return 0;
}

/* ---- notices ---- */

static struct restore_task *task_of_notice(struct restore *restore, uint32_t id, size_t *ret_index)
{
	for (size_t i = 0; i < restore->task_count; i++) {
		struct restore_task *task = restore->tasks[i];
		if (is_live(task) && id >= task->first_notice && id - task->first_notice < task->thread_count) {
			*ret_index = id - task->first_notice;
			return task;
		}
	}
	return NULL;
}

/* The step that failed, read from the stage: its number and what it was for. */
static int fail_step(struct restore *restore, const struct blob_notice *notice)
{
	size_t index = 0;
	struct restore_task *task = task_of_notice(restore, notice->id, &index);
	struct blob_run run;
	struct blob_step step = {};

	if (!task)
		return fail(&restore->failure, EPROTO, "restore-notice", NULL, NULL, "an unknown thread has reported");
	struct iovec local = {&run, sizeof(run)}, remote = {(void *)task->stage->slots[index].run, sizeof(run)};
	if (process_vm_readv(task->pid, &local, 1, &remote, 1, 0) == sizeof(run)) {
		local = (struct iovec){&step, sizeof(step)};
		remote = (struct iovec){(void *)(run.steps + notice->failed_step * sizeof(step)), sizeof(step)};
		if (process_vm_readv(task->pid, &local, 1, &remote, 1, 0) != sizeof(step))
			step.number = 0;
	}
	return fail_errno(&restore->failure, notice->result, "restore-call", restore_task_name(restore, task), NULL,
			  "thread %d: system call %lu(0x%lx, 0x%lx, 0x%lx, 0x%lx) failed at step %d",
			  (int)task->entry->threads[index], step.number, step.args[0], step.args[1], step.args[2],
			  step.args[3], notice->failed_step);
}

/* @expected: how many; UNTIL_CLOSED = until no process has the other end any more. */
static int receive_notices(struct restore *restore, int notify_fd, size_t expected)
{
	struct blob_notice notices[64];
	size_t partial = 0;

	while (expected) {
		struct pollfd ready = {notify_fd, POLLIN};
		int count = poll(&ready, 1, CHECK_INTERVAL_MS);
		if (atomic_load(&restore->shared->aborted))
			return -ECANCELED;
		if (count <= 0) {
			int error = resume_check_alive(restore);
			if (error < 0)
				return error;
			continue;
		}
		ssize_t length = read(notify_fd, (char *)notices + partial, sizeof(notices) - partial);
		if (!length && expected == UNTIL_CLOSED)
			return 0;
		if (length <= 0)
			return fail(&restore->failure, ECHILD, "restore-died", NULL, NULL, "the tree has ended");
		length += partial;
		for (size_t i = 0; i < length / sizeof(notices[0]) && expected;
		     i++, expected -= expected != UNTIL_CLOSED)
			if (notices[i].failed_step >= 0)
				return fail_step(restore, &notices[i]);
		partial = length % sizeof(notices[0]);
		memmove(notices, (char *)notices + length - partial, partial);
	}
	return 0;
}

/* ---- stopping ---- */

static int interrupt(struct restore *restore, pid_t tid)
{
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0)
		return fail_errno(&restore->failure, errno, "restore-stop", NULL, NULL, "cannot stop thread %d", tid);
	return 0;
}

static int wait_stopped(struct restore *restore, pid_t tid)
{
	int signal, stop = thread_wait_interrupted(tid, &signal);

	if (stop < 0 || stop == THREAD_STOP_GONE)
		return fail(&restore->failure, ECHILD, "restore-died", NULL, NULL,
			    "thread %d ended while it was being restored", tid);
	return 0;
}

int resume_gather(struct restore *restore, int notify_fd)
{
	size_t expected = 0;

	for (size_t i = 0; i < restore->task_count; i++)
		expected += is_live(restore->tasks[i]) ? restore->tasks[i]->thread_count : 0;
	int error = receive_notices(restore, notify_fd, expected);
	for (size_t i = 0; i < restore->task_count && !error; i++) {
		struct restore_task *task = restore->tasks[i];
		for (size_t t = 0; is_live(task) && t < task->thread_count && !error; t++) {
			error = t ? seize(restore, task->entry->threads[t]) : 0;
			if (!error)
				error = interrupt(restore, task->entry->threads[t]);
		}
	}
	for (size_t i = 0; i < restore->task_count && !error; i++) {
		struct restore_task *task = restore->tasks[i];
		for (size_t t = 0; is_live(task) && t < task->thread_count && !error; t++)
			error = wait_stopped(restore, task->entry->threads[t]);
	}
	return error;
}

/* ---- dead and stopped tasks ---- */

static int wait_dead(struct restore *restore, const struct restore_task *task)
{
	_cleanup_fd_ int pidfd = syscall(SYS_pidfd_open, task->pid, 0);
	struct pollfd ended = {pidfd, POLLIN};

	if (pidfd < 0)
		return fail_errno(&restore->failure, errno, "restore-dead", restore_task_name(restore, task), NULL,
				  "the dead task was taken in by its parent");
	while (poll(&ended, 1, -1) < 0 && errno == EINTR)
		;
	return 0;
}

/* As if by SIGSTOP: it is stopped in the eyes of its parent. */
static int stop_task(struct restore *restore, const struct restore_task *task)
{
	_cleanup_free_ pid_t *tids = xcalloc(task->thread_count, sizeof(*tids));

	for (size_t t = 0; t < task->thread_count; t++)
		tids[t] = task->entry->threads[t];
	int error = threads_stop_group(task->pid, tids, task->thread_count);
	return error ? fail_errno(&restore->failure, error, "restore-stop", restore_task_name(restore, task), NULL,
				  "cannot stop it")
		     : 0;
}

static int settle_states(struct restore *restore)
{
	int error = 0;

	for (size_t i = 0; i < restore->task_count && !error; i++) {
		struct restore_task *task = restore->tasks[i];
		if (!is_live(task))
			error = wait_dead(restore, task);
		else if (task->state == TASK_STOPPED)
			error = stop_task(restore, task);
	}
	return error;
}

/* ---- last programs ---- */

/*
 * The last that the last program of a process does is to close its end of the socket, and criu sees the end of the
 * stream when all have: no process has to be stopped for it. All signals are blocked, so that the pause lasts.
 */
static void plan_close(struct restore *restore, const struct restore_task *task, struct program *program)
{
	PROGRAM_CALL(program, SYS_close, atomic_load(&restore->shared->notify_fd[task->index]));
	program_describe(program, "close of the socket to criu");
	PROGRAM_CALL(program, SYS_pause, 0);
}

static int compose_last(struct restore *restore, const struct restore_task *task, size_t index, struct program *program)
{
	for (const struct task_kind *const *kind = task_kinds; *kind; kind++) {
		int error = !index && (*kind)->plan_last ? (*kind)->plan_last(restore, task, program) : 0;
		if (!error && (*kind)->plan_last_thread)
			error = (*kind)->plan_last_thread(restore, task, task->thread_cores[index],
							  task->entry->threads[index], program);
		if (error < 0)
			return error;
	}
	if (!index)
		plan_close(restore, task, program);
	return 0;
}

/* Returns 1 if the thread runs, 0 if it has nothing to do, or a failure. */
static int start_last(struct restore *restore, const struct restore_task *task, size_t index)
{
	const struct stage_slot *slot = &task->stage->slots[index];
	pid_t tid = task->entry->threads[index];
	struct program *program = stage_program(task->stage, index);
	struct thread_context context;
	int error = compose_last(restore, task, index, program);
	bool empty = !program_step_count(program);

	if (!error && !empty)
		error = stage_place(restore, task->pid, task->stage, index, task->first_notice + index, program);
	program_free(program);
	if (error < 0 || empty)
		return error;
	error = context_save(tid, &context);
	if (!error)
		error = context_redirect(tid, &context, task->stage->code, slot->run, slot->stack);
	if (!error && ptrace(PTRACE_CONT, tid, 0, 0) < 0)
		error = -errno;
	return error ? fail_errno(&restore->failure, error, "restore-last", restore_task_name(restore, task), NULL,
				  "cannot start the last program of thread %d", tid)
		     : 1;
}

static int stop_again(struct restore *restore, const pid_t *tids, size_t count)
{
	int error = 0;

	for (size_t i = 0; i < count && !error; i++)
		error = interrupt(restore, tids[i]);
	for (size_t i = 0; i < count && !error; i++)
		error = wait_stopped(restore, tids[i]);
	return error;
}

/* The leaders of all tasks at once, or all threads but the leaders. */
static int run_last_programs(struct restore *restore, int notify_fd, bool leaders)
{
	_cleanup_free_ pid_t *started = NULL;
	size_t count = 0, capacity = 0;
	int error = 0;

	for (size_t i = 0; i < restore->task_count; i++) {
		const struct restore_task *task = restore->tasks[i];
		size_t end = !is_live(task) ? 0 : leaders ? 1 : task->thread_count;
		for (size_t t = leaders ? 0 : 1; t < end; t++) {
			int result = start_last(restore, task, t);
			if (result < 0)
				return result;
			if (!result)
				continue;
			ARRAY_GROW(started, count, capacity);
			started[count++] = task->entry->threads[t];
		}
	}
	error = receive_notices(restore, notify_fd, leaders ? UNTIL_CLOSED : count);
	return error ? error : stop_again(restore, started, count);
}

static int set_from_outside(struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++) {
		struct restore_task *task = restore->tasks[i];
		if (!is_live(task))
			continue;
		for (const struct task_kind *const *kind = task_kinds; *kind; kind++) {
			int error = (*kind)->outside ? (*kind)->outside(restore, task) : 0;
			for (size_t t = 0; t < task->thread_count && !error && (*kind)->outside_thread; t++)
				error = (*kind)->outside_thread(restore, task, task->thread_cores[t],
								task->entry->threads[t]);
			if (error < 0)
				return error;
		}
	}
	return 0;
}

/* ---- leaving the stage ---- */

static int fail_stage(struct restore *restore, const struct restore_task *task, int error)
{
	return fail_errno(&restore->failure, error, "restore-stage", restore_task_name(restore, task), NULL,
			  "cannot take the interpreter out");
}

/* The leader unmaps the stage, from the interpreter's own system call instruction. */
static int start_unmap(struct restore *restore, struct restore_task *task)
{
	const int64_t args[6] = {task->stage->address, task->stage->bytes};
	struct thread_context context;
	int error = context_save(task->pid, &context);

	if (!error)
		error = context_redirect_to_call(task->pid, &context, stage_call_instruction(task->stage), SYS_munmap,
						 args);
	if (!error)
		error = thread_start_to_syscall(task->pid);
	return error ? fail_stage(restore, task, error) : 0;
}

static int go_through_unmap(struct restore *restore, struct restore_task *task)
{
	int error = thread_wait_syscall(task->pid);

	if (!error)
		error = thread_start_to_syscall(task->pid);
	return error ? fail_stage(restore, task, error) : 0;
}

static int end_unmap(struct restore *restore, struct restore_task *task)
{
	int64_t result = 0;
	int error = thread_wait_syscall(task->pid);

	if (!error)
		error = context_call_result(task->pid, &result);
	if (!error && result < 0)
		error = result;
	return error ? fail_stage(restore, task, error) : 0;
}

static int arm_restarts(struct restore *restore, struct restore_task *task)
{
	const struct stage *stage = task->stage;
	int error = 0;

	for (size_t t = 0; t < task->thread_count && !error; t++) {
		if (!restart_is_needed(task->thread_cores[t]))
			continue;
		if (!task->restart_results)
			task->restart_results =
				arena_alloc(&restore->arena, task->thread_count * sizeof(*task->restart_results));
		error = restart_arm(restore, task->thread_cores[t], task->pid, task->entry->threads[t],
				    stage_call_instruction(stage), stage->slots[t].data, &task->restart_results[t]);
	}
	return error;
}

static int set_registers(struct restore *restore, struct restore_task *task)
{
	int error = 0;

	for (size_t t = 0; t < task->thread_count && !error; t++)
		error = registers_restore(restore, task->thread_cores[t], task->pid, task->entry->threads[t],
					  restart_is_needed(task->thread_cores[t]) ? &task->restart_results[t] : NULL);
	return error;
}

/* Each step for all processes before the next: while one works criu is already at another. */
static int leave_stages(struct restore *restore)
{
	int (*const steps[])(struct restore *, struct restore_task *) = {arm_restarts, start_unmap, go_through_unmap,
									 end_unmap, set_registers};
	int error = 0;

	for (size_t step = 0; step < ARRAY_SIZE(steps); step++)
		for (size_t i = 0; i < restore->task_count && !error; i++)
			if (is_live(restore->tasks[i]))
				error = steps[step](restore, restore->tasks[i]);
	return error;
}

int resume_finish(struct restore *restore, int notify_fd)
{
	int error = settle_states(restore);

	if (!error)
		error = run_last_programs(restore, notify_fd, false);
	if (!error)
		error = run_last_programs(restore, notify_fd, true);
	if (!error)
		error = set_from_outside(restore);
	if (!error)
		error = leave_stages(restore);
	for (const struct fd_kind *const *kind = fd_kinds; *kind && !error; kind++)
		if ((*kind)->before_resume)
			error = (*kind)->before_resume(restore);
	return error;
}

/* From the last of these on, a tree whose criu is killed runs instead of dying with it. */
static void outlive_criu(const struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++)
		for (size_t t = 0; is_live(restore->tasks[i]) && t < restore->tasks[i]->thread_count; t++)
			ptrace(PTRACE_SETOPTIONS, restore->tasks[i]->entry->threads[t], 0, 0);
}

/*
 * A pending SIGSTOP is the first that a released thread sees: it stops its process before any thread has executed an
 * instruction of its own.
 */
static void stop_before_release(struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++)
		if (is_live(restore->tasks[i]) && restore->tasks[i]->state != TASK_STOPPED &&
		    stop_task(restore, restore->tasks[i]) < 0)
			log_warn("%s", restore->failure.cause);
}

void resume_release(struct restore *restore)
{
	outlive_criu(restore);
	if (restore->options->leave_stopped)
		stop_before_release(restore);
	for (size_t i = 0; i < restore->task_count; i++) {
		struct restore_task *task = restore->tasks[i];
		for (size_t t = 0; is_live(task) && t < task->thread_count; t++)
			if (ptrace(PTRACE_DETACH, task->entry->threads[t], 0, 0) < 0)
				log_warn("cannot let thread %u go: %s", task->entry->threads[t], strerror(errno));
	}
	for (size_t i = 0; i < restore->task_count; i++)
		for (size_t t = 0; restore->tasks[i]->state == TASK_STOPPED && t < restore->tasks[i]->thread_count; t++)
			proc_await_stop(restore->tasks[i]->pid, restore->tasks[i]->entry->threads[t]);
}

void resume_kill(struct restore *restore, pid_t root_pid)
{
	int status;

	if (root_pid > 0)
		kill(root_pid, SIGKILL);
	for (size_t i = 0; i < restore->task_count; i++)
		if (atomic_load(&restore->shared->born[i]))
			kill(restore->tasks[i]->pid, SIGKILL);
	while (waitpid(-1, &status, __WALL) > 0 || errno == EINTR)
		;
}
