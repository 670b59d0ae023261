/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small images. Everything they say is in memory; nothing here needs the tree to stand still. Those of tasks and
 * threads are many small files, written with all cores.
 */
#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include "base/fd.h"
#include "base/parallel.h"
#include "dump/stages.h"
#include "kinds/mem/memory.h"
#include "kinds/ns/time_namespace.h"
#include "kinds/task/seccomp.h"

#include "inventory.pb-c.h"
#include "pstree.pb-c.h"

/* Ids of criu's own namespaces, which the tree shares. */
enum { NS_PID = 1, NS_NET, NS_IPC, NS_UTS, NS_TIME, NS_MNT, NS_USER, NS_CGROUP };

static int write_image(struct dump *dump, struct failure *failure, enum image_kind kind, uint64_t id,
		       const ProtobufCMessage *message)
{
	struct image *image;
	int error = image_create(dump->images_dirfd, failure, kind, id, &image);

	if (error < 0)
		return error;
	image_write(image, message);
	return image_close(&image);
}

static int write_one(struct dump *dump, enum image_kind kind, uint64_t id, const ProtobufCMessage *message)
{
	return write_image(dump, &dump->failure, kind, id, message);
}

static void fill_ids(TaskKobjIdsEntry *ids, uint32_t id)
{
	task_kobj_ids_entry__init(ids);
	ids->vm_id = ids->files_id = ids->fs_id = ids->sighand_id = id;
	ids->has_pid_ns_id = ids->has_net_ns_id = ids->has_ipc_ns_id = ids->has_uts_ns_id = ids->has_mnt_ns_id =
		ids->has_user_ns_id = ids->has_cgroup_ns_id = ids->has_time_ns_id = true;
	ids->pid_ns_id = NS_PID;
	ids->net_ns_id = NS_NET;
	ids->ipc_ns_id = NS_IPC;
	ids->uts_ns_id = NS_UTS;
	ids->mnt_ns_id = NS_MNT;
	ids->user_ns_id = NS_USER;
	ids->cgroup_ns_id = NS_CGROUP;
	ids->time_ns_id = NS_TIME;
}

static int write_inventory(struct dump *dump)
{
	InventoryEntry inventory = INVENTORY_ENTRY__INIT;
	PluginsEntry plugins = PLUGINS_ENTRY__INIT;
	TaskKobjIdsEntry ids;

	inventory.img_version = memory_has_shared_runs(dump) || dump->options->parent_has_shared_pages
					? IMAGE_VERSION_SHARED_PAGES
					: IMAGE_VERSION_1_1;
	inventory.has_fdinfo_per_id = inventory.fdinfo_per_id = true;
	inventory.has_ns_per_id = inventory.ns_per_id = true;
	fill_ids(&ids, 1);
	inventory.root_ids = &ids;
	inventory.has_root_cg_set = true;
	inventory.root_cg_set = 1;
	inventory.has_lsmtype = true;
	inventory.lsmtype = LSMTYPE__NO_LSM;
	inventory.has_network_lock_method = true;
	inventory.network_lock_method = 0;
	inventory.plugins_entry = &plugins;
	inventory.dump_criu_run_id = dump->run_id;
	if (dump->options->pre_dump) {
		inventory.has_pre_dump_mode = true;
		inventory.pre_dump_mode = dump->options->pre_dump_mode;
	}
	if (dump->options->tcp_close)
		inventory.has_tcp_close = inventory.tcp_close = true;
	return write_one(dump, IMAGE_INVENTORY, 0, &inventory.base);
}

static int write_tree(struct dump *dump)
{
	struct image *image;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_PSTREE, 0, &image);

	if (error < 0)
		return error;
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		PstreeEntry entry = PSTREE_ENTRY__INIT;
		size_t count = task->thread_count ? task->thread_count : 1;
		uint32_t *threads = arena_alloc(&dump->arena, count * sizeof(*threads));
		for (size_t t = 0; t < task->thread_count; t++)
			threads[t] = task->threads[t].tid;
		entry.pid = task->pid;
		entry.ppid = task->parent ? task->parent->pid : 0;
		entry.pgid = task->pgid;
		entry.sid = task->sid;
		entry.n_threads = count;
		entry.threads = threads;
		entry.has_start_time = true;
		entry.start_time = task->start_time;
		image_write(image, &entry.base);
	}
	return image_close(&image);
}

static int write_descriptors(struct dump *dump, struct failure *failure, const struct dump_task *task)
{
	struct image *image;
	int error = image_create(dump->images_dirfd, failure, IMAGE_FDINFO, task->files_id, &image);

	if (error < 0)
		return error;
	for (size_t i = 0; i < task->fd_count; i++) {
		FdinfoEntry entry = FDINFO_ENTRY__INIT;
		entry.id = task->fds[i].file->id;
		entry.flags = task->fds[i].close_on_exec;
		entry.type = task->fds[i].file->entry->type;
		entry.fd = task->fds[i].number;
		image_write(image, &entry.base);
	}
	return image_close(&image);
}

static int write_task(struct dump *dump, struct failure *failure, const struct dump_task *task)
{
	TaskKobjIdsEntry ids;
	int error = write_image(dump, failure, IMAGE_CORE, task->pid, &task->core->base);

	if (error || task->state == TASK_STATE_DEAD)
		return error;
	fill_ids(&ids, task->files_id);
	error = write_image(dump, failure, IMAGE_IDS, task->pid, &ids.base);
	if (!error)
		error = write_image(dump, failure, IMAGE_MM, task->pid, &task->mm->base);
	if (!error && task->fs)
		error = write_image(dump, failure, IMAGE_FS, task->pid, &task->fs->base);
	return error ? error : write_descriptors(dump, failure, task);
}

/* A task with its own images, or one of its further threads. */
struct write_job {
	const struct dump_task *task;
	const struct dump_thread *thread; /* NULL: the task */
};

struct writing {
	struct dump *dump;
	struct write_job *jobs;
	size_t count, capacity;
	pthread_mutex_t lock;
	int error; /* of the first that failed, as is dump->failure */
};

static void add_job(struct writing *writing, struct write_job job)
{
	ARRAY_GROW(writing->jobs, writing->count, writing->capacity);
	writing->jobs[writing->count++] = job;
}

static void run_job(void *context, size_t index)
{
	struct writing *writing = context;
	const struct write_job *job = &writing->jobs[index];
	struct failure failure = {};
	int error = job->thread ? write_image(writing->dump, &failure, IMAGE_CORE, job->thread->tid,
					      &job->thread->core->base)
				: write_task(writing->dump, &failure, job->task);

	if (!error)
		return;
	pthread_mutex_lock(&writing->lock);
	if (!writing->error) {
		writing->error = error;
		writing->dump->failure = failure;
	}
	pthread_mutex_unlock(&writing->lock);
}

static int write_tasks(struct dump *dump)
{
	enum { WORTH_A_THREAD = 32 };
	struct writing writing = {.dump = dump, .lock = PTHREAD_MUTEX_INITIALIZER};

	for (size_t i = 0; i < dump->task_count; i++) {
		const struct dump_task *task = dump->tasks[i];
		add_job(&writing, (struct write_job){task, NULL});
		for (size_t t = 1; t < task->thread_count && task->state != TASK_STATE_DEAD; t++)
			add_job(&writing, (struct write_job){task, &task->threads[t]});
	}
	parallel_for(writing.count, WORTH_A_THREAD, run_job, &writing);
	free(writing.jobs);
	return writing.error;
}

static int write_files(struct dump *dump)
{
	struct image *image;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_FILES, 0, &image);

	if (error < 0)
		return error;
	for (size_t i = 0; i < dump->file_count; i++)
		image_write(image, &dump->files[i]->entry->base);
	return image_close(&image);
}

int write_pre_dump_images(struct dump *dump)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = write_one(dump, IMAGE_MM, dump->tasks[i]->pid, &dump->tasks[i]->mm->base);
	if (!error)
		error = write_tree(dump);
	return error ? error : write_inventory(dump);
}

int write_images(struct dump *dump)
{
	int error = write_tasks(dump);

	if (!error)
		error = write_files(dump);
	if (!error)
		error = seccomp_write(dump);
	if (!error)
		error = write_tree(dump);
	if (!error)
		error = time_namespace_write(dump);
	/* Last: a directory with an inventory is a complete dump. */
	return error ? error : write_inventory(dump);
}
