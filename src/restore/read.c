/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the images: hostile input. After this stage every reference has been followed once (parents, threads,
 * descriptors to files, ids), numbers are in range, and the rest of the restore may rely on it.
 */
#include "restore/read.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/file_lock.h"
#include "kinds/ns/time_namespace.h"
#include "kinds/task/registers.h"
#include "kinds/task/task_kind.h"
#include "restore/memory.h"
#include "restore/stores.h"

enum { TASK_ALIVE = 1, TASK_DEAD = 2, TASK_STOPPED = 3, PID_LIMIT = 1 << 22, FD_LIMIT = 1 << 30 };

static int read_inventory(struct restore *restore)
{
	ProtobufCMessage *message;
	int error = restore_image_read_one(restore, IMAGE_INVENTORY, 0, &message);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", "images directory",
			    "check --images-dir; a dump that did not finish has no inventory",
			    "inventory.img is missing");
	if (error < 0)
		return error;
	restore->inventory = (const InventoryEntry *)message;
	if (restore->inventory->has_pre_dump_mode)
		return fail(&restore->failure, EINVAL, "image-pre-dump", "inventory.img",
			    "restore the images of the dump that came after it",
			    "these are images of a pre-dump, which hold memory only");
	if (restore->inventory->img_version > IMAGE_VERSION_SHARED_PAGES)
		return fail(&restore->failure, EOPNOTSUPP, "image-version", "inventory.img", "use a newer criu",
			    "version %u is newer than this criu", restore->inventory->img_version);
	return 0;
}

static bool pid_is_valid(uint32_t pid)
{
	return pid > 0 && pid < PID_LIMIT;
}

static int add_task(struct restore *restore, const PstreeEntry *entry)
{
	struct restore_task *task = arena_alloc(&restore->arena, sizeof(*task));

	task->entry = entry;
	task->pid = entry->pid;
	task->ppid = entry->ppid;
	task->pgid = entry->pgid;
	task->sid = entry->sid;
	task->index = restore->task_count;
	if (!pid_is_valid(entry->pid) || !pid_is_valid(entry->pgid) || !pid_is_valid(entry->sid) || !entry->n_threads ||
	    restore_find_task(restore, task->pid))
		return fail(&restore->failure, EINVAL, "image-range", "pstree.img", NULL,
			    "process %u: ids are out of range, doubled, or it has no threads", entry->pid);
	if (task->index) {
		task->parent = restore_find_task(restore, task->ppid);
		if (!task->parent)
			return fail(&restore->failure, EINVAL, "image-reference", "pstree.img", NULL,
				    "process %d: its parent %d does not come before it", task->pid, task->ppid);
	}
	restore->tasks = xrealloc_array(restore->tasks, restore->task_count + 1, sizeof(*restore->tasks));
	restore->tasks[restore->task_count++] = task;
	return 0;
}

static int read_tree(struct restore *restore)
{
	struct image *image;
	ProtobufCMessage *message;
	int error = restore_image_open(restore, IMAGE_PSTREE, 0, &image);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", "pstree.img", "copy the whole images directory",
			    "the image is missing");
	if (error < 0)
		return error;
	while ((error = image_read(image, &message)) > 0) {
		error = add_task(restore, (const PstreeEntry *)message);
		if (error < 0)
			break;
	}
	image_close(&image);
	if (!error && !restore->task_count)
		error = fail(&restore->failure, EINVAL, "image-truncated", "pstree.img", "copy the images again",
			     "it holds no process");
	if (!error && restore->options->pid && restore->options->pid != restore->tasks[0]->pid)
		error = fail(&restore->failure, EINVAL, "pid-differs", "--tree", "give the pid that was dumped",
			     "the images hold the tree of process %d, not of %d", restore->tasks[0]->pid,
			     restore->options->pid);
	return error;
}

static int read_part(struct restore *restore, enum image_kind kind, uint64_t id, const void *ret_message)
{
	ProtobufCMessage *message;
	char name[64];
	int error = restore_image_read_one(restore, kind, id, &message);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", image_name(kind, id, name, sizeof(name)),
			    "copy the whole images directory", "the image is missing");
	if (error < 0)
		return error;
	*(ProtobufCMessage **)ret_message = message;
	return 0;
}

static int check_kinds(struct restore *restore, const struct restore_task *task)
{
	for (const struct task_kind *const *kind = task_kinds; *kind; kind++) {
		int error = (*kind)->check ? (*kind)->check(restore, task) : 0;
		if (error < 0)
			return error;
	}
	return 0;
}

static int read_threads(struct restore *restore, struct restore_task *task)
{
	task->thread_count = task->entry->n_threads;
	task->thread_cores = arena_alloc(&restore->arena, task->thread_count * sizeof(*task->thread_cores));
	task->thread_cores[0] = task->core;
	if (task->entry->threads[0] != (uint32_t)task->pid)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "its first thread is not its leader");
	for (size_t i = 0; i < task->thread_count; i++) {
		if (!pid_is_valid(task->entry->threads[i]))
			return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
				    "thread id %u is out of range", task->entry->threads[i]);
		int error = i ? read_part(restore, IMAGE_CORE, task->entry->threads[i], &task->thread_cores[i]) : 0;
		if (!error)
			error = registers_check(restore, task->thread_cores[i]);
		if (!error && !task->thread_cores[i]->thread_core)
			error = fail(&restore->failure, EINVAL, "image-missing", NULL, NULL,
				     "core-%u.img has no thread part", task->entry->threads[i]);
		if (error < 0)
			return error;
	}
	return 0;
}

static int read_descriptors(struct restore *restore, struct restore_task *task, uint32_t files_id)
{
	struct image *image;
	ProtobufCMessage *message;
	size_t capacity = 0;
	int error = restore_image_open(restore, IMAGE_FDINFO, files_id, &image);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", NULL, "copy the whole images directory",
			    "fdinfo-%u.img is missing", files_id);
	if (error < 0)
		return error;
	while ((error = image_read(image, &message)) > 0) {
		const FdinfoEntry *entry = (const FdinfoEntry *)message;
		struct restore_fd slot = {
			.task = task, .number = entry->fd, .close_on_exec = entry->flags & FD_CLOEXEC};
		slot.file = restore_find_file(restore, entry->id);
		image_message_free(message);
		if (!slot.file || slot.number < 0 || slot.number > FD_LIMIT ||
		    (task->fd_count && task->fds[task->fd_count - 1].number >= slot.number)) {
			error = fail(&restore->failure, EINVAL, "image-reference", NULL, NULL,
				     "fdinfo-%u.img: descriptor %d is out of order or names no file", files_id,
				     slot.number);
			break;
		}
		if (slot.number >= restore->above_tables)
			restore->above_tables = slot.number + 1;
		ARRAY_GROW(task->fds, task->fd_count, capacity);
		task->fds[task->fd_count++] = slot;
	}
	image_close(&image);
	return error;
}

static int read_live_task(struct restore *restore, struct restore_task *task)
{
	int error = read_threads(restore, task);

	if (!error && !task->core->ids)
		error = read_part(restore, IMAGE_IDS, task->pid, &task->ids);
	else if (!error)
		task->ids = task->core->ids;
	if (!error)
		error = read_part(restore, IMAGE_MM, task->pid, &task->mm);
	if (!error)
		error = read_part(restore, IMAGE_FS, task->pid, &task->fs);
	if (!error)
		error = read_descriptors(restore, task, task->ids->files_id);
	return error ? error : check_kinds(restore, task);
}

static int read_task(struct restore *restore, struct restore_task *task)
{
	int error = read_part(restore, IMAGE_CORE, task->pid, &task->core);

	if (!error && !task->core->tc)
		error = fail(&restore->failure, EINVAL, "image-missing", NULL, NULL, "core-%d.img has no task part",
			     task->pid);
	if (!error)
		task->state = task->core->tc->task_state;
	if (!error && task->state != TASK_ALIVE && task->state != TASK_DEAD && task->state != TASK_STOPPED)
		error = fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "its state %d is unknown",
			     task->state);
	if (!error && task->state != TASK_DEAD)
		error = read_live_task(restore, task);
	if (!error && !task->index && task->state == TASK_DEAD)
		error = fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "the root of the tree is dead");
	return error ? fail_in(&restore->failure, "process %d", task->pid) : 0;
}

/* ---- files ---- */

static const struct fd_kind *kind_of_file(const FileEntry *entry)
{
	const struct fd_kind *const *kind = fd_kinds;

	for (; *kind && kind[1]; kind++)
		if ((*kind)->type == entry->type)
			break;
	return *kind; /* the last row refuses, if it is ever opened */
}

static int compare_files(const void *left, const void *right)
{
	const struct restore_file *a = *(struct restore_file *const *)left, *b = *(struct restore_file *const *)right;

	return a->id < b->id ? -1 : a->id > b->id;
}

static int read_files(struct restore *restore)
{
	struct image *image;
	ProtobufCMessage *message;
	size_t capacity = 0;
	int error = restore_image_open(restore, IMAGE_FILES, 0, &image);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", "files.img", "copy the whole images directory",
			    "the image is missing");
	if (error < 0)
		return error;
	while ((error = image_read(image, &message)) > 0) {
		struct restore_file *file = arena_alloc(&restore->arena, sizeof(*file));
		file->entry = (const FileEntry *)message;
		file->id = file->entry->id;
		file->kind = kind_of_file(file->entry);
		ARRAY_GROW(restore->files, restore->file_count, capacity);
		restore->files[restore->file_count++] = file;
	}
	image_close(&image);
	if (error < 0)
		return error;
	if (restore->file_count)
		qsort(restore->files, restore->file_count, sizeof(*restore->files), compare_files);
	for (size_t i = 0; i < restore->file_count; i++) {
		restore->files[i]->slot = i;
		if (i && restore->files[i - 1]->id == restore->files[i]->id)
			return fail(&restore->failure, EINVAL, "image-range", "files.img", NULL,
				    "file %u is there twice", restore->files[i]->id);
	}
	return 0;
}

/* Users in task order: the first is the owner. Counted first, so that each list is allocated once. */
static void link_users(struct restore *restore)
{
	for (size_t t = 0; t < restore->task_count; t++)
		for (size_t i = 0; i < restore->tasks[t]->fd_count; i++)
			restore->tasks[t]->fds[i].file->user_count++;
	for (size_t i = 0; i < restore->file_count; i++) {
		struct restore_file *file = restore->files[i];
		file->users = arena_alloc(&restore->arena, file->user_count * sizeof(*file->users));
		file->user_count = 0;
	}
	for (size_t t = 0; t < restore->task_count; t++)
		for (size_t i = 0; i < restore->tasks[t]->fd_count; i++) {
			struct restore_file *file = restore->tasks[t]->fds[i].file;
			file->users[file->user_count++] = &restore->tasks[t]->fds[i];
		}
}

static int prepare_kinds(struct restore *restore)
{
	for (const struct fd_kind *const *kind = fd_kinds; *kind; kind++) {
		int error = (*kind)->prepare ? (*kind)->prepare(restore) : 0;
		if (error < 0)
			return error;
	}
	return file_locks_prepare(restore);
}

static void count_notices(struct restore *restore)
{
	uint32_t next = 0;

	for (size_t i = 0; i < restore->task_count; i++) {
		restore->tasks[i]->first_notice = next;
		next += restore->tasks[i]->thread_count;
	}
}

/* A thread's last program holds its filters: no more than the image has. */
static int measure_filters(struct restore *restore)
{
	struct stat stat;
	int error = restore_image_fetch(restore, IMAGE_SECCOMP, 0);

	if (!error && !fstatat(restore->images_dirfd, "seccomp.img", &stat, 0))
		restore->seccomp_bytes = stat.st_size * 4;
	return error;
}

int read_images(struct restore *restore)
{
	restore->above_tables = STDERR_FILENO + 1;
	int error = read_inventory(restore);

	if (!error)
		error = time_namespace_read(restore);
	if (!error)
		error = read_tree(restore);
	if (!error)
		error = read_files(restore);
	for (size_t i = 0; i < restore->task_count && !error; i++)
		error = read_task(restore, restore->tasks[i]);
	if (error < 0)
		return error;
	link_users(restore);
	count_notices(restore);
	error = measure_filters(restore);
	if (!error)
		error = stores_add(restore);
	if (!error)
		error = prepare_kinds(restore);
	return error ? error : memory_read(restore);
}
