/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the mappings of the tree's tasks are, read once for each task, by all cores. Which pages there are is found by
 * page_scan.c, which of them fork shared by page_share.c.
 */
#include "kinds/mem/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "kernel/vm_flags.h"
#include "kinds/mem/mem_kind.h"

enum {
	MAX_THREADS = 16,
	TASKS_WORTH_A_THREAD = 8,
};

struct task_work {
	struct dump *dump;
	int (*work)(struct dump *dump, struct dump_task *task, void *context);
	void *context;
	atomic_size_t next;
	atomic_int error;
	_Atomic(struct dump_task *) failed;
};

static void *run_work(void *argument)
{
	struct task_work *work = argument;
	struct dump *dump = work->dump;
	size_t index;

	while ((index = atomic_fetch_add(&work->next, 1)) < dump->task_count && !atomic_load(&work->error)) {
		struct dump_task *task = dump->tasks[index];
		int error = task->state == TASK_STATE_DEAD ? 0 : work->work(dump, task, work->context);
		if (error < 0) {
			atomic_store(&work->failed, task);
			atomic_store(&work->error, error);
		}
	}
	return NULL;
}

int memory_for_tasks(struct dump *dump, int (*work)(struct dump *dump, struct dump_task *task, void *context),
		     void *context, struct dump_task **ret_failed)
{
	struct task_work all = {.dump = dump, .work = work, .context = context};
	pthread_t threads[MAX_THREADS];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t started = 0;

	while (dump->task_count > TASKS_WORTH_A_THREAD && (long)started + 1 < cores && started < MAX_THREADS &&
	       !pthread_create(&threads[started], NULL, run_work, &all))
		started++;
	run_work(&all);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	*ret_failed = atomic_load(&all.failed);
	return atomic_load(&all.error);
}

static int read_mappings(struct dump *dump, struct dump_task *task, void *context)
{
	task->memory = xcalloc(1, sizeof(*task->memory));
	return vm_flags_mappings_read(dump->vm_flags, task->pid, task->proc_dirfd, true, &task->memory->mappings);
}

int memory_collect(struct dump *dump, struct dump_task **ret_failed)
{
	return memory_for_tasks(dump, read_mappings, NULL, ret_failed);
}

void memory_find_vdso(const struct dump_task *task, uint64_t *ret_start, uint64_t *ret_end)
{
	const struct mappings *mappings = &task->memory->mappings;

	*ret_start = *ret_end = 0;
	for (size_t i = mappings->count; i-- > 0;)
		if (!strcmp(mappings->items[i].name, "[vdso]")) {
			*ret_start = mappings->items[i].start;
			*ret_end = mappings->items[i].end;
			return;
		}
}

static uint32_t generic_flags(const struct mapping *mapping)
{
	return (mapping->flags & MAPPING_GROWS_DOWN ? MAP_GROWSDOWN : 0) |
	       (mapping->flags & MAPPING_LOCKED ? MAP_LOCKED : 0) |
	       (mapping->flags & MAPPING_NO_RESERVE ? MAP_NORESERVE : 0);
}

static int describe_mapping(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	const struct mem_kind *kind = mem_kind_of_mapping(mapping);

	entry->start = mapping->start;
	entry->end = mapping->end;
	entry->pgoff = mapping->offset;
	entry->prot = mapping->protection;
	entry->fd = -1;
	entry->flags = generic_flags(mapping);
	entry->has_madv = mapping->advice != 0;
	entry->madv = mapping->advice;
	entry->has_sealed = entry->sealed = mapping->flags & MAPPING_SEALED;
	entry->has_lock_on_fault = entry->lock_on_fault = mapping->flags & MAPPING_LOCK_ON_FAULT;
	if (!kind->dump(dump, task, mapping, entry))
		return 0;
	fail_in(&dump->failure, "%s: mapping %lx-%lx", dump_task_name(dump, task), mapping->start, mapping->end);
	return dump_blocked(dump);
}

/* The status that the kinds would give, from name and sharing alone. */
static uint32_t short_status(const struct mapping *mapping)
{
	const struct mem_kind *kind = mem_kind_of_mapping(mapping);
	VmaEntry entry = VMA_ENTRY__INIT;

	if (!strcmp(mapping->name, "[vdso]"))
		return VMA_STATUS_REGULAR | VMA_STATUS_VDSO | VMA_STATUS_ANON_PRIVATE;
	if (!kind->has_private_pages || mapping->shared)
		return VMA_STATUS_REGULAR | (mapping->shared ? VMA_STATUS_FILE_SHARED : 0);
	entry.status = VMA_STATUS_REGULAR | VMA_STATUS_ANON_PRIVATE;
	if (kind == mem_kind_of_entry(&entry))
		return entry.status | (strcmp(mapping->name, "[heap]") ? 0 : VMA_STATUS_HEAP);
	return VMA_STATUS_REGULAR | VMA_STATUS_FILE_PRIVATE;
}

int memory_collect_short(struct dump *dump, struct dump_task *task)
{
	struct mappings *mappings;

	task->memory = xcalloc(1, sizeof(*task->memory));
	mappings = &task->memory->mappings;
	int error = mappings_read_short(task->proc_dirfd, mappings);
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-maps", dump_task_name(dump, task), NULL,
				  "cannot read its mappings");
	task->mm = arena_message(&dump->arena, MmEntry, mm_entry);
	task->mm->vmas = arena_alloc(&dump->arena, mappings->count * sizeof(*task->mm->vmas));
	VmaEntry *entries = arena_alloc(&dump->arena, mappings->count * sizeof(*entries));
	for (size_t i = 0; i < mappings->count; i++) {
		const struct mapping *mapping = &mappings->items[i];
		vma_entry__init(&entries[i]);
		entries[i].start = mapping->start;
		entries[i].end = mapping->end;
		entries[i].pgoff = mapping->offset;
		entries[i].prot = mapping->protection;
		entries[i].flags = mapping->shared ? MAP_SHARED : MAP_PRIVATE;
		entries[i].fd = -1;
		entries[i].status = short_status(mapping);
		task->mm->vmas[task->mm->n_vmas++] = &entries[i];
	}
	return 0;
}

/* The kernel's own data pages show as several mappings in a row on newer kernels; the images know one. */
static bool continues_vvar(const VmaEntry *before, const VmaEntry *entry)
{
	return before && before->end == entry->start && before->status == entry->status &&
	       (entry->status & VMA_STATUS_VVAR);
}

int memory_describe(struct dump *dump, struct dump_task *task)
{
	const struct mappings *mappings = &task->memory->mappings;
	VmaEntry *entries = arena_alloc(&dump->arena, mappings->count * sizeof(*entries));
	VmaEntry **vmas = arena_alloc(&dump->arena, mappings->count * sizeof(*vmas));
	size_t count = 0;

	for (size_t i = 0; i < mappings->count; i++) {
		VmaEntry *entry = &entries[i];
		vma_entry__init(entry);
		int error = describe_mapping(dump, task, &mappings->items[i], entry);
		if (error < 0)
			return error;
		if (continues_vvar(count ? vmas[count - 1] : NULL, entry))
			vmas[count - 1]->end = entry->end;
		else
			vmas[count++] = entry;
	}
	task->mm->vmas = vmas;
	task->mm->n_vmas = count;
	return 0;
}

void memory_free(struct dump_task *task)
{
	if (!task->memory)
		return;
	mappings_free(&task->memory->mappings);
	free(task->memory->runs);
	free(task->memory);
	task->memory = NULL;
}
