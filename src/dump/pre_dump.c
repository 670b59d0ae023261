/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pre-dump: memory only, while the tree runs, for a later dump that then has less to do.
 *
 *     freeze → list mappings → (first time: make the trackers) → list and arm the pages → let run → read the pages
 *
 * Entry: frozen. Exit: the tree runs. It stands only while its pages are listed and armed, which costs what page tables
 * cost; neither threads nor descriptors are looked at. A page that changes before it is read may be in the images with
 * any content, and one that goes away with zeros: both are marked as written since, so the next dump does not rely on
 * them.
 * Pages that fork shares are written under one task only. The others' are neither written nor armed, so that the next
 * dump, for which the tree stands, can say whose they are.
 */
#include "base/log.h"
#include "dump/stages.h"
#include "kernel/proc.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/shmem_track.h"
#include "kinds/mem/track.h"

static bool is_live(const struct dump_task *task)
{
	return task->state != TASK_STATE_DEAD;
}

static int collect(struct dump *dump)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++) {
		dump->tasks[i]->index = i;
		if (is_live(dump->tasks[i]))
			error = memory_collect_short(dump, dump->tasks[i]);
	}
	return error;
}

/* For those who look at the images; no dump after this one needs it. */
static void describe_mm(struct dump_task *task)
{
	MmEntry *mm = task->mm;
	struct proc_stat stat;

	if (proc_read_stat(task->proc_dirfd, "stat", &stat) < 0)
		return; /* it has ended meanwhile */
	collect_borders(mm, &stat);
}

int pre_dump_frozen(struct dump *dump)
{
	dump_stage(dump, "frozen");
	int error = collect(dump);

	dump_stage(dump, "collected");
	if (!error)
		tracker_begin(dump);
	if (!error)
		error = inject_trackers(dump);
	dump_stage(dump, "released");
	if (!error)
		error = memory_scan_tasks(dump);
	dump_stage(dump, "scanned");
	return error;
}

int pre_dump_running(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->memory)
			dump->tasks[i]->memory->running = true;
	int error = memory_skip_shared(dump);
	shmem_pre_dump_find(dump);
	if (!error && dump->options->steps && dump->options->steps->scanned)
		error = dump->options->steps->scanned(dump->options->context, dump);
	if (!error)
		error = memory_write(dump);
	if (!error)
		error = shmem_pre_dump_write(dump);
	dump_stage(dump, "pages");
	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->memory)
			describe_mm(dump->tasks[i]);
	if (!error)
		error = write_pre_dump_images(dump);
	dump_stage(dump, "written");
	return error;
}
