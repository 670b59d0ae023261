/* SPDX-License-Identifier: Apache-2.0 */
#include "model/restore.h"

const char *restore_task_name(struct restore *restore, const struct restore_task *task)
{
	const char *comm = task->core && task->core->tc && task->core->tc->comm ? task->core->tc->comm : "?";

	return arena_printf(&restore->arena, "task %d (%s)", task->pid, comm);
}

struct restore_task *restore_find_task(const struct restore *restore, pid_t pid)
{
	for (size_t i = 0; i < restore->task_count; i++)
		if (restore->tasks[i]->pid == pid)
			return restore->tasks[i];
	return NULL;
}

struct restore_file *restore_find_file(const struct restore *restore, uint32_t id)
{
	size_t low = 0, high = restore->file_count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (restore->files[middle]->id == id)
			return restore->files[middle];
		if (restore->files[middle]->id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}
