/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From descriptor tables to open files.
 *
 * Entry: inspected. Each descriptor is taken with pidfd_getfd, looked at, and given to the first kind that knows it,
 * once per open file description. Whether two descriptors are the same description is asked with kcmp, first for the
 * same number of the parent, which most children have from it. kcmp also orders descriptions: candidates (same device,
 * inode, flags and position) lie in sorted buckets, so that ten thousand descriptors of one inode cost n log n calls.
 * Descriptors of ours are closed soon: their number is limited.
 */
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <uthash.h>

#include "base/fd.h"
#include "dump/look_ahead.h"
#include "dump/stages.h"
#include "kernel/file_objects.h"
#include "kinds/fd/fd_kind.h"

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

struct bucket {
	struct {
		uint64_t device, inode, position, flags;
	} key;
	struct dump_file **files; /* in the order of kcmp */
	size_t count, capacity;
	UT_hash_handle hh;
};

struct file_index {
	struct bucket *buckets;
};

static struct bucket *find_bucket(struct dump *dump, const struct target_fd *target)
{
	struct bucket *bucket, *wanted = arena_alloc(&dump->arena, sizeof(*wanted));

	if (!dump->file_index)
		dump->file_index = arena_alloc(&dump->arena, sizeof(*dump->file_index));
	wanted->key.device = target->stat.st_dev;
	wanted->key.inode = target->stat.st_ino;
	wanted->key.position = target->position;
	wanted->key.flags = target->flags;
	HASH_FIND(hh, dump->file_index->buckets, &wanted->key, sizeof(wanted->key), bucket);
	if (bucket)
		return bucket;
	HASH_ADD(hh, dump->file_index->buckets, key, sizeof(wanted->key), wanted);
	return wanted;
}

/* Where kcmp finds a file: in a task's table, or in ours. */
static void kcmp_place(const struct dump_file *file, pid_t *ret_pid, int *ret_number)
{
	*ret_pid = file->kept_fd >= 0 ? getpid() : file->task->pid;
	*ret_number = file->kept_fd >= 0 ? file->kept_fd : file->number;
}

/* Returns 0 with the known file, or its place in the bucket and NULL; or a failure. */
static int search_bucket(struct dump *dump, struct bucket *bucket, pid_t pid, int number, size_t *ret_place,
			 struct dump_file **ret_file)
{
	size_t low = 0, high = bucket->count;

	*ret_file = NULL;
	while (low < high) {
		size_t middle = (low + high) / 2;
		pid_t other_pid;
		int other_number;
		kcmp_place(bucket->files[middle], &other_pid, &other_number);
		int order = syscall(SYS_kcmp, pid, other_pid, KCMP_FILE, number, other_number);
		if (order < 0)
			return fail_errno(&dump->failure, errno, "fd-kcmp", NULL, "the kernel needs CONFIG_KCMP",
					  "cannot compare descriptors");
		if (order == 0) {
			*ret_file = bucket->files[middle];
			return 0;
		}
		if (order == 1)
			high = middle;
		else
			low = middle + 1;
	}
	*ret_place = low;
	return 0;
}

static void insert(struct bucket *bucket, size_t place, struct dump_file *file)
{
	ARRAY_GROW(bucket->files, bucket->count, bucket->capacity);
	memmove(&bucket->files[place + 1], &bucket->files[place], (bucket->count - place) * sizeof(*bucket->files));
	bucket->files[place] = file;
	bucket->count++;
}

static FownEntry *read_owner(struct dump *dump, int fd, const struct file_objects *known)
{
	FownEntry *fown = arena_message(&dump->arena, FownEntry, fown_entry);
	struct f_owner_ex owner;
	uint32_t uids[2];

	if (known && !known->may_have_owner)
		return fown;
	int signal = fcntl(fd, F_GETSIG);
	fown->signum = signal > 0 ? signal : 0;
	if (fcntl(fd, F_GETOWN_EX, &owner) < 0 || !owner.pid)
		return fown;
	fown->pid_type = owner.type;
	fown->pid = owner.pid;
	if (!fcntl(fd, F_GETOWNER_UIDS, uids)) {
		fown->uid = uids[0];
		fown->euid = uids[1];
	}
	return fown;
}

/* All pipes are files of one file system of the kernel; named fifos are not. */
static dev_t pipe_device(struct dump *dump)
{
	struct stat stat;
	int ends[2];

	if (!dump->pipe_device && !pipe2(ends, O_CLOEXEC)) {
		if (!fstat(ends[0], &stat))
			dump->pipe_device = stat.st_dev;
		close(ends[0]);
		close(ends[1]);
	}
	return dump->pipe_device;
}

static int dump_with_kind(struct dump *dump, struct target_fd *target, const struct file_objects *known)
{
	struct dump_file *file = target->file;

	for (const struct fd_kind *const *kind = fd_kinds; *kind; kind++) {
		if (!(*kind)->match(target))
			continue;
		file->kind = *kind;
		file->entry->type = (*kind)->type;
		target->fown = read_owner(dump, target->fd, known);
		return (*kind)->dump(dump, target, file->entry);
	}
	return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, NULL, "\"%s\" is of an unknown kind",
		    target->link);
}

static int identify(struct dump *dump, struct dump_task *task, int number, const struct look *look,
		    struct dump_file **ret_file)
{
	struct target_fd target = {
		.task = task,
		.number = number,
		.fd = look->fd,
		.stat = look->stat,
		.flags = look->flags,
		.position = look->position,
		.link = look->link,
	};
	size_t place;

	if (look->error)
		return fail_errno(&dump->failure, look->error, look->code, NULL, NULL, "%s", look->cause);
	struct bucket *bucket = find_bucket(dump, &target);
	int error = search_bucket(dump, bucket, number >= 0 ? task->pid : getpid(), number >= 0 ? number : look->fd,
				  &place, ret_file);
	if (error < 0 || *ret_file)
		return error;
	struct dump_file *file = dump_file_add(dump, NULL);
	file->task = task;
	file->number = number;
	file->stat = target.stat;
	file->flags = target.flags;
	file->position = target.position;
	file->is_unlocked = look->known && !look->known->may_be_locked;
	/* In no table: the copy that kcmp and later readers need is ours. */
	if (number < 0) {
		file->kept_fd = fcntl(look->fd, F_DUPFD_CLOEXEC, 0);
		if (file->kept_fd < 0)
			return fail_errno(&dump->failure, errno, "fd-get", NULL, NULL, "cannot keep a descriptor");
	}
	insert(bucket, place, file);
	target.file = file;
	error = dump_with_kind(dump, &target, look->known);
	if (error < 0)
		return error;
	*ret_file = file;
	return 0;
}

int dump_file_identify(struct dump *dump, struct dump_task *task, int number, int fd, struct dump_file **ret_file)
{
	struct look look;

	look_at(pipe_device(dump), fd, &look);
	return identify(dump, task, number, &look, ret_file);
}

/* What nobody touched since a fork is one open file under one number: a single call tells. */
static bool is_inherited(const struct dump *dump, const struct dump_task *task, struct dump_fd *slot)
{
	struct dump_file *file = task->parent ? dump_find_fd(dump, task->parent, slot->number) : NULL;

	if (!file || syscall(SYS_kcmp, task->pid, task->parent->pid, KCMP_FILE, slot->number, slot->number))
		return false;
	slot->file = file;
	return true;
}

/* What the kernel has beside the files of a large table. */
struct known_files {
	struct file_objects *objects; /* ascending */
	size_t count, next;
};

static struct known_files read_known_files(const struct dump *dump, const struct dump_task *task)
{
	enum { WORTH_READING = 256 };
	struct known_files known = {};

	if (!dump->file_objects || task->fd_count < WORTH_READING)
		return known;
	known.objects = xcalloc(task->fd_count, sizeof(*known.objects));
	known.count = file_objects_read(dump->file_objects, task->pid, known.objects, task->fd_count);
	return known;
}

/* Numbers are asked for in ascending order. */
static const struct file_objects *find_known(struct known_files *known, int number)
{
	while (known->next < known->count && known->objects[known->next].number < number)
		known->next++;
	return known->next < known->count && known->objects[known->next].number == number ? &known->objects[known->next]
											  : NULL;
}

static int dump_table(struct dump *dump, struct dump_task *task)
{
	_cleanup_free_ struct dump_fd **slots = xcalloc(task->fd_count, sizeof(*slots));
	size_t count = 0;
	int error = 0;

	for (size_t i = 0; i < task->fd_count; i++)
		if (!is_inherited(dump, task, &task->fds[i]))
			slots[count++] = &task->fds[i];
	if (!count)
		return 0;
	struct known_files known = read_known_files(dump, task);
	struct look_ahead *ahead = look_ahead_start(task, slots, count, pipe_device(dump));
	for (size_t i = 0; i < count && !error; i++) {
		struct look *look = look_ahead_next(ahead);
		look->known = find_known(&known, slots[i]->number);
		error = identify(dump, task, slots[i]->number, look, &slots[i]->file);
		if (error < 0) {
			fail_in(&dump->failure, "%s", dump_fd_name(dump, task, slots[i]->number));
			error = dump_blocked(dump);
		}
		close_fd_pointer(&look->fd);
		look->fd = -1;
	}
	look_ahead_end(ahead);
	free(known.objects);
	return error;
}

int dump_files(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		int error = dump_table(dump, dump->tasks[i]);
		if (error < 0)
			return error;
	}
	return 0;
}

int finish_files(struct dump *dump)
{
	for (const struct fd_kind *const *kind = fd_kinds; *kind; kind++) {
		int error = (*kind)->dump_finish ? (*kind)->dump_finish(dump) : 0;
		if (error < 0)
			error = dump_blocked(dump);
		if (error < 0)
			return error;
	}
	return 0;
}

void release_files(struct dump *dump, bool tree_is_gone)
{
	if (dump->files_released)
		return;
	dump->files_released = true;
	for (const struct fd_kind *const *kind = fd_kinds; *kind; kind++)
		if ((*kind)->dump_release)
			(*kind)->dump_release(dump, tree_is_gone);
}

void free_files(struct dump *dump)
{
	struct bucket *bucket, *next;

	for (size_t i = 0; i < dump->file_count; i++)
		close_fd_pointer(&dump->files[i]->kept_fd);
	free(dump->files);
	if (!dump->file_index)
		return;
	HASH_ITER (hh, dump->file_index->buckets, bucket, next) {
		HASH_DEL(dump->file_index->buckets, bucket);
		free(bucket->files);
	}
}
