/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be known of the frozen tree from outside.
 *
 * Entry: every thread stands. Exit: each task has its core messages, ids and mappings; nothing was changed.
 */
#include <fcntl.h>
#include <linux/kcmp.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "dump/stages.h"
#include "kernel/proc.h"
#include "kinds/fd/regular.h"
#include "kinds/mem/memory.h"
#include "kinds/task/process_facts.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_facts.h"

enum { MANY_THREADS = 64 };

static CoreEntry *new_core(struct dump *dump, bool with_thread)
{
	CoreEntry *core = arena_message(&dump->arena, CoreEntry, core_entry);

	core->mtype = CORE_ENTRY__MARCH__X86_64;
	if (with_thread)
		core->thread_core = arena_message(&dump->arena, ThreadCoreEntry, thread_core_entry);
	return core;
}

static void make_cores(struct dump *dump, struct dump_task *task)
{
	task->core = new_core(dump, task->state != TASK_STATE_DEAD);
	task->core->tc = arena_message(&dump->arena, TaskCoreEntry, task_core_entry);
	task->core->tc->task_state = task->state;
	task->core->tc->exit_code = task->state == TASK_STATE_DEAD ? task->exit_code : 0;
	task->core->tc->comm = task->comm;
	for (size_t i = 0; i < task->thread_count; i++)
		task->threads[i].core = i ? new_core(dump, true) : task->core;
	if (task->state == TASK_STATE_STOPPED) {
		task->core->tc->has_stop_signo = true;
		task->core->tc->stop_signo = task->threads[0].stop_signal;
	}
}

/* The words of /proc/PID/auxv before the terminating pair. */
static int collect_auxv(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ char *text = NULL;
	size_t length, words = 0;
	int error = process_facts_take(task, PROCESS_AUXV, &text, &length);

	if (error < 0)
		return fail_errno(&dump->failure, error, "task-auxv", dump_task_name(dump, task), NULL,
				  "cannot read its auxv");
	uint64_t *auxv = arena_memdup(&dump->arena, text, length);
	while ((words + 2) * sizeof(*auxv) <= length && (auxv[words] || auxv[words + 1]))
		words += 2;
	task->mm->mm_saved_auxv = auxv;
	task->mm->n_mm_saved_auxv = words;
	return 0;
}

void collect_borders(MmEntry *mm, const struct proc_stat *stat)
{
	mm->mm_start_code = stat->start_code;
	mm->mm_end_code = stat->end_code;
	mm->mm_start_data = stat->start_data;
	mm->mm_end_data = stat->end_data;
	mm->mm_start_stack = stat->start_stack;
	mm->mm_start_brk = mm->mm_brk = stat->start_brk;
	mm->mm_arg_start = stat->arg_start;
	mm->mm_arg_end = stat->arg_end;
	mm->mm_env_start = stat->env_start;
	mm->mm_env_end = stat->env_end;
}

static int collect_mm(struct dump *dump, struct dump_task *task)
{
	MmEntry *mm = arena_message(&dump->arena, MmEntry, mm_entry);

	collect_borders(mm, task->stat);
	task->mm = mm;
	task->core->tc->flags = task->stat->flags;
	return collect_auxv(dump, task);
}

/* ---- what tasks share (CLONE_VM, CLONE_FILES, …) ---- */

enum { FIRST_TASK_ID = 2 }; /* 1 is criu's own in the inventory */

static const struct resource {
	int type;      /* of kcmp(2) */
	size_t object; /* offset in struct task_objects */
	const char *what;
} resources[] = {
	{KCMP_VM, offsetof(struct task_objects, memory), "memory"},
	{KCMP_FILES, offsetof(struct task_objects, files), "descriptor table"},
	{KCMP_FS, offsetof(struct task_objects, directories), "working directory"},
};

static int refuse_shared(struct dump *dump, const struct resource *resource, const struct dump_task *task,
			 const struct dump_task *other)
{
	fail(&dump->failure, EOPNOTSUPP, "task-shares", dump_task_name(dump, task), "try again when a vfork has ended",
	     "it shares its %s with process %d (%s)", resource->what, other->pid, other->comm);
	return dump_blocked(dump);
}

/* Sorts the live tasks by the kernel's order of the resource: one that lasts as long as the kernel runs. */
static int compare_all(struct dump *dump, const struct resource *resource)
{
	enum { EQUAL, LESS };
	_cleanup_free_ struct dump_task **sorted = xcalloc(dump->task_count, sizeof(*sorted));
	size_t count = 0;

	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		size_t low = 0, high = count;
		if (task->state == TASK_STATE_DEAD)
			continue;
		while (low < high) {
			size_t middle = (low + high) / 2;
			long order = syscall(SYS_kcmp, task->pid, sorted[middle]->pid, resource->type, 0, 0);
			if (order < 0)
				return fail_errno(&dump->failure, errno, "task-kcmp", dump_task_name(dump, task),
						  "the kernel needs CONFIG_KCMP", "cannot compare it with other tasks");
			if (order == EQUAL)
				return refuse_shared(dump, resource, task, sorted[middle]);
			if (order == LESS)
				high = middle;
			else
				low = middle + 1;
		}
		memmove(&sorted[low + 1], &sorted[low], (count - low) * sizeof(*sorted));
		sorted[low] = task;
		count++;
	}
	return 0;
}

struct task_object {
	uint64_t object;
	const struct dump_task *task;
};

static int order_objects(const void *left, const void *right)
{
	const struct task_object *one = left, *other = right;

	if (one->object != other->object)
		return one->object < other->object ? -1 : 1;
	return one->task->index < other->task->index ? -1 : 1;
}

/* The same by the addresses. Returns 1 if they are not known of all tasks. */
static int compare_objects(struct dump *dump, const struct resource *resource)
{
	_cleanup_free_ struct task_object *objects = xcalloc(dump->task_count, sizeof(*objects));
	size_t count = 0;

	for (size_t i = 0; i < dump->task_count; i++) {
		const struct dump_task *task = dump->tasks[i];
		if (task->state == TASK_STATE_DEAD)
			continue;
		const char *known = (const char *)&task->threads[0].facts->objects;
		objects[count].task = task;
		memcpy(&objects[count].object, known + resource->object, sizeof(uint64_t));
		if (!objects[count++].object)
			return 1;
	}
	qsort(objects, count, sizeof(*objects), order_objects);
	for (size_t i = 1; i < count; i++)
		if (objects[i].object == objects[i - 1].object)
			return refuse_shared(dump, resource, objects[i].task, objects[i - 1].task);
	return 0;
}

/*
 * Refuses two tasks that have the same resource: such sharing between processes (vfork in progress, LinuxThreads of
 * old) has no place in the images.
 */
static int refuse_sharing(struct dump *dump, const struct resource *resource)
{
	int result = compare_objects(dump, resource);

	return result > 0 ? compare_all(dump, resource) : result;
}

static int give_ids(struct dump *dump)
{
	uint32_t next = FIRST_TASK_ID;

	for (size_t i = 0; i < ARRAY_SIZE(resources); i++) {
		int error = refuse_sharing(dump, &resources[i]);
		if (error < 0)
			return error;
	}
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		if (task->state != TASK_STATE_DEAD)
			task->vm_id = task->files_id = task->fs_id = task->sighand_id = next++;
	}
	return 0;
}

static int collect_kinds(struct dump *dump, struct dump_task *task)
{
	for (const struct task_kind *const *kind = task_kinds; *kind; kind++) {
		int error = (*kind)->collect ? (*kind)->collect(dump, task) : 0;
		for (size_t i = 0; i < task->thread_count && !error; i++)
			if ((*kind)->collect_thread)
				error = (*kind)->collect_thread(dump, &task->threads[i]);
		if (error < 0) {
			error = dump_blocked(dump);
			if (error < 0)
				return error;
		}
	}
	return 0;
}

static int check_session(struct dump *dump)
{
	struct dump_task *root = dump->tasks[0];

	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		bool inherited = task->sid == root->sid && root->sid != root->pid;
		if (!inherited || dump->options->shell_job)
			continue;
		fail(&dump->failure, EOPNOTSUPP, "task-session-outside", dump_task_name(dump, task),
		     "use --shell-job, or start it with setsid", "its session leader, process %d, is outside the tree",
		     task->sid);
		return dump_blocked(dump);
	}
	return 0;
}

struct mapping_reading {
	struct dump *dump;
	struct dump_task *failed;
	int error;
};

static void *read_mappings(void *argument)
{
	struct mapping_reading *reading = argument;

	reading->error = memory_collect(reading->dump, &reading->failed);
	return NULL;
}

/* The mappings of one process are read by one core, which can be long: another begins with the rest meanwhile. */
static int read_proc(struct dump *dump)
{
	struct mapping_reading reading = {.dump = dump};
	pthread_t thread;
	bool aside =
		dump->tasks[0]->thread_count >= MANY_THREADS && !pthread_create(&thread, NULL, read_mappings, &reading);

	if (!aside)
		read_mappings(&reading);
	thread_facts_read(dump);
	process_facts_read(dump);
	if (aside)
		pthread_join(thread, NULL);
	return reading.error ? fail_errno(&dump->failure, reading.error, "task-maps",
					  dump_task_name(dump, reading.failed), NULL, "cannot read its mappings")
			     : 0;
}

int collect_tree(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		dump->tasks[i]->index = i;
		make_cores(dump, dump->tasks[i]);
	}
	int error = check_session(dump);
	if (!error)
		error = read_proc(dump);
	if (!error)
		error = give_ids(dump);
	for (size_t i = 0; i < dump->task_count && !error; i++) {
		struct dump_task *task = dump->tasks[i];
		if (task->state == TASK_STATE_DEAD)
			continue;
		error = collect_mm(dump, task);
		if (!error)
			error = collect_kinds(dump, task);
	}
	thread_facts_release(dump);
	return error;
}
