/* SPDX-License-Identifier: Apache-2.0 */
#include "model/restore.h"

#include "image/image_streamer.h"

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

int restore_image_fetch(struct restore *restore, enum image_kind kind, uint64_t id)
{
	char name[64];

	if (!restore->streamer)
		return 0;
	return image_streamer_fetch(restore->streamer, restore->images_dirfd, image_name(kind, id, name, sizeof(name)),
				    &restore->failure);
}

int restore_image_open(struct restore *restore, enum image_kind kind, uint64_t id, struct image **ret_image)
{
	int error = restore_image_fetch(restore, kind, id);

	return error ? error : image_open(restore->images_dirfd, &restore->failure, kind, id, ret_image);
}

int restore_image_read_one(struct restore *restore, enum image_kind kind, uint64_t id, ProtobufCMessage **ret_message)
{
	int error = restore_image_fetch(restore, kind, id);

	return error ? error : image_read_one(restore->images_dirfd, &restore->failure, kind, id, ret_message);
}
