/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks on files.
 *
 * Who holds a lock depends on its sort. flock() and open-file-description locks, and leases, belong to an open file
 * description, whoever has it; fcntl() locks belong to a process (its descriptor table) and vanish when the process
 * closes *any* descriptor of the inode. /proc/PID/fdinfo/N lists exactly the locks that were taken through that open
 * file by that table or by the description itself, so each lock is found at its holder, wherever else the inode is
 * open. Reading fdinfo takes 11 us for each descriptor. /proc/locks names the inodes that have locks at all, but takes
 * 10 ms (the kernel waits for all cores), is complete only in the first pid namespace, and its device numbers are those
 * of fstat() only on real devices: it is asked when there are thousands of files.
 *
 * Restore takes the locks in the last program of each task, when nothing will close a descriptor any more.
 */
#include "kinds/fd/file_lock.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "base/fd.h"
#include "base/parallel.h"

#include "file-lock.pb-c.h"

/* file_lock_entry.flag */
enum lock_sort { LOCK_SORT_POSIX = 1, LOCK_SORT_FLOCK = 2, LOCK_SORT_OFD = 4, LOCK_SORT_LEASE = 8 };

/* file_lock_entry.type */
enum { LOCK_TYPE_READ = 0, LOCK_TYPE_WRITE = 1 };

/* Whether an inode has locks of ranges (fcntl), whoever holds them. */
enum range_locks { RANGE_LOCKS_UNKNOWN, RANGE_LOCKS_NONE, RANGE_LOCKS_MAYBE };

/* From so many open files on /proc/locks is faster than their fdinfo. */
enum { MANY_FILES = 1500, QUESTIONS_WORTH_A_READER = 64 };

/* The inode number that the kernel gives its first pid namespace. */
#define FIRST_PID_NAMESPACE 0xEFFFFFFCU

/* ---- dump ---- */

struct lock_dump {
	FileLockEntry *entries;
	size_t count, capacity;
	struct lock_question *questions;
	size_t question_count, question_capacity;
	bool inodes_known; /* `inodes` has every inode of a real device with a lock */
	uint64_t *inodes;  /* ascending */
	size_t inode_count, inode_capacity;
	uint32_t *seen_by; /* by file id: 1 + index of the last task whose table showed it */
	uint8_t *ranges;   /* by file id: enum range_locks */
};

static int compare_numbers(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

static void read_locked_inodes(struct lock_dump *locks)
{
	_cleanup_free_ char *text = NULL;
	struct stat namespace;
	char *rest, *line;

	if (stat("/proc/self/ns/pid", &namespace) < 0 || namespace.st_ino != FIRST_PID_NAMESPACE ||
	    read_text_at(AT_FDCWD, "/proc/locks", &text, NULL) < 0)
		return;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		uint64_t inode;
		/* "1: POSIX  ADVISORY  WRITE 402 fe:00:1234 0 EOF"; a waiter has "->" before its sort. */
		if (strstr(line, "->") || sscanf(line, "%*d: %*s %*s %*s %*d %*x:%*x:%lu", &inode) != 1)
			continue;
		ARRAY_GROW(locks->inodes, locks->inode_count, locks->inode_capacity);
		locks->inodes[locks->inode_count++] = inode;
	}
	if (locks->inode_count)
		qsort(locks->inodes, locks->inode_count, sizeof(*locks->inodes), compare_numbers);
	locks->inodes_known = true;
}

static bool may_be_locked(const struct lock_dump *locks, const struct stat *stat)
{
	uint64_t inode = stat->st_ino;

	if (locks->inodes_known && (!locks->inode_count || major(stat->st_dev)))
		return locks->inode_count &&
		       bsearch(&inode, locks->inodes, locks->inode_count, sizeof(inode), compare_numbers);
	/* Pipes, sockets and what has no file type at all are many, and nobody locks them. */
	return S_ISREG(stat->st_mode) || S_ISDIR(stat->st_mode) || S_ISCHR(stat->st_mode) || S_ISBLK(stat->st_mode);
}

/* A lock for writing of all there is would conflict with any other. */
static enum range_locks ask_range_locks(struct dump *dump, const struct dump_file *file)
{
	struct flock conflict = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	_cleanup_fd_ int fd = syscall(SYS_pidfd_getfd, file->task->pidfd, file->number, 0);

	if (fd < 0 || fcntl(fd, F_GETLK, &conflict) < 0 || conflict.l_type != F_UNLCK)
		return RANGE_LOCKS_MAYBE;
	return RANGE_LOCKS_NONE;
}

/*
 * The first table that has a description tells all but the locks that belong to other tables, and these are of ranges:
 * one question for the inode spares those tables, where many processes have the file from a fork.
 */
static bool is_told(struct dump *dump, struct lock_dump *locks, const struct dump_task *task,
		    const struct dump_file *file)
{
	uint8_t *ranges = &locks->ranges[file->id];

	if (file->task == task || file->number < 0)
		return false;
	if (*ranges == RANGE_LOCKS_UNKNOWN)
		*ranges = ask_range_locks(dump, file);
	return *ranges == RANGE_LOCKS_NONE;
}

static int fail_line(struct dump *dump, const char *line)
{
	return fail(&dump->failure, EOPNOTSUPP, "file-lock", NULL, "its holder must release it before the dump",
		    "the lock \"%s\" is of a kind that cannot be checkpointed", line);
}

static int parse_line(struct dump *dump, const char *line, FileLockEntry *entry)
{
	char sort[16], state[16], access[16], end[32];
	int64_t start;

	file_lock_entry__init(entry);
	if (sscanf(line, "%*d: %15s %15s %15s %*d %*x:%*x:%*u %ld %31s", sort, state, access, &start, end) != 5)
		return fail_line(dump, line);
	if (!strcmp(sort, "POSIX"))
		entry->flag = LOCK_SORT_POSIX;
	else if (!strcmp(sort, "FLOCK"))
		entry->flag = LOCK_SORT_FLOCK;
	else if (!strcmp(sort, "OFDLCK"))
		entry->flag = LOCK_SORT_OFD;
	else if (!strcmp(sort, "LEASE") && !strcmp(state, "ACTIVE"))
		entry->flag = LOCK_SORT_LEASE;
	else
		return fail_line(dump, line);
	if (strcmp(access, "READ") && strcmp(access, "WRITE"))
		return fail_line(dump, line);
	entry->type = access[0] == 'R' ? LOCK_TYPE_READ : LOCK_TYPE_WRITE;
	entry->start = start;
	entry->len = strcmp(end, "EOF") ? strtoll(end, NULL, 10) - start + 1 : 0;
	return 0;
}

static int dump_lines(struct dump *dump, struct lock_dump *locks, const struct dump_task *task,
		      const struct dump_fd *slot, char *text)
{
	char *rest;

	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		FileLockEntry entry;
		if (strncmp(line, "lock:\t", strlen("lock:\t")))
			continue;
		int error = parse_line(dump, line + strlen("lock:\t"), &entry);
		if (error < 0)
			return error;
		/* What belongs to the description is told by each table that has it: the first one counts. */
		if (entry.flag != LOCK_SORT_POSIX && slot->file->task != task)
			continue;
		entry.pid = task->pid;
		entry.fd = slot->number;
		ARRAY_GROW(locks->entries, locks->count, locks->capacity);
		locks->entries[locks->count++] = entry;
	}
	return 0;
}

/* A descriptor whose fdinfo tells locks. */
struct lock_question {
	const struct dump_task *task;
	const struct dump_fd *slot;
	char *text;
	int error;
};

static void ask_slot(struct dump *dump, struct lock_dump *locks, const struct dump_task *task,
		     const struct dump_fd *slot)
{
	/* In a dry run, a descriptor that cannot be dumped has no file. */
	if (!slot->file || locks->seen_by[slot->file->id] == task->index + 1)
		return;
	locks->seen_by[slot->file->id] = task->index + 1;
	if (slot->file->is_unlocked || !may_be_locked(locks, &slot->file->stat) ||
	    is_told(dump, locks, task, slot->file))
		return;
	ARRAY_GROW(locks->questions, locks->question_count, locks->question_capacity);
	locks->questions[locks->question_count++] = (struct lock_question){.task = task, .slot = slot};
}

static void read_fdinfo(void *context, size_t index)
{
	struct lock_question *question = &((const struct lock_dump *)context)->questions[index];
	char path[32];

	snprintf(path, sizeof(path), "fdinfo/%d", question->slot->number);
	question->error = read_text_at(question->task->proc_dirfd, path, &question->text, NULL);
}

static int take_answer(struct dump *dump, struct lock_dump *locks, const struct lock_question *question)
{
	const struct dump_task *task = question->task;
	int number = question->slot->number;

	if (question->error < 0)
		return fail_errno(&dump->failure, question->error, "fd-fdinfo", dump_fd_name(dump, task, number), NULL,
				  "cannot read its fdinfo in /proc");
	int error = dump_lines(dump, locks, task, question->slot, question->text);
	return error ? fail_in(&dump->failure, "%s", dump_fd_name(dump, task, number)) : 0;
}

static int write_image(struct dump *dump, const struct lock_dump *locks)
{
	struct image *image;

	if (!locks->count || dump->only_explain)
		return 0;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_FILE_LOCKS, 0, &image);
	if (error < 0)
		return error;
	for (size_t i = 0; i < locks->count; i++)
		image_write(image, &locks->entries[i].base);
	return image_close(&image);
}

int file_locks_dump(struct dump *dump)
{
	struct lock_dump locks = {};
	int error = 0;

	if (dump->file_count > MANY_FILES)
		read_locked_inodes(&locks);
	locks.seen_by = xcalloc(dump->file_count + 1, sizeof(*locks.seen_by));
	locks.ranges = xcalloc(dump->file_count + 1, sizeof(*locks.ranges));
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t slot = 0; slot < dump->tasks[i]->fd_count; slot++)
			ask_slot(dump, &locks, dump->tasks[i], &dump->tasks[i]->fds[slot]);
	parallel_for(locks.question_count, QUESTIONS_WORTH_A_READER, read_fdinfo, &locks);
	for (size_t i = 0; i < locks.question_count; i++) {
		if (!error)
			error = take_answer(dump, &locks, &locks.questions[i]);
		free(locks.questions[i].text);
	}
	if (!error)
		error = write_image(dump, &locks);
	free(locks.questions);
	free(locks.entries);
	free(locks.inodes);
	free(locks.seen_by);
	free(locks.ranges);
	return error;
}

/* ---- restore ---- */

struct restored_locks {
	FileLockEntry *entries; /* ascending pids */
	size_t count, capacity;
};

static bool has_descriptor(const struct restore_task *task, int number)
{
	size_t low = 0, high = task->fd_count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (task->fds[middle].number == number)
			return true;
		if (task->fds[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

static int check_entry(struct restore *restore, const FileLockEntry *entry)
{
	const struct restore_task *task = restore_find_task(restore, entry->pid);
	bool is_known = entry->flag == LOCK_SORT_POSIX || entry->flag == LOCK_SORT_FLOCK ||
			entry->flag == LOCK_SORT_OFD || entry->flag == LOCK_SORT_LEASE;

	if (!task || !has_descriptor(task, entry->fd))
		return fail(&restore->failure, EPROTO, "image-file-lock", "filelocks.img", NULL,
			    "there is no descriptor %d of process %d", entry->fd, entry->pid);
	if (!is_known || entry->type > LOCK_TYPE_WRITE || entry->start < 0 || entry->len < 0)
		return fail(&restore->failure, EPROTO, "image-file-lock", "filelocks.img", NULL,
			    "the lock of process %d on descriptor %d is of an unknown kind (%u, %u)", entry->pid,
			    entry->fd, entry->flag, entry->type);
	return 0;
}

static int compare_pids(const void *left, const void *right)
{
	const FileLockEntry *a = left, *b = right;

	return (a->pid > b->pid) - (a->pid < b->pid);
}

static int read_image(struct restore *restore, struct image *image, struct restored_locks *locks)
{
	ProtobufCMessage *message;
	int got, error = 0;

	while (!error && (got = image_read(image, &message)) > 0) {
		error = check_entry(restore, (const FileLockEntry *)message);
		if (!error) {
			ARRAY_GROW(locks->entries, locks->count, locks->capacity);
			locks->entries[locks->count++] = *(const FileLockEntry *)message;
		}
		image_message_free(message);
	}
	return error ? error : got;
}

int file_locks_prepare(struct restore *restore)
{
	struct restored_locks *locks = arena_alloc(&restore->arena, sizeof(*locks));
	struct image *image;
	int error = restore_image_open(restore, IMAGE_FILE_LOCKS, 0, &image);

	if (error < 0)
		return error == -ENOENT ? 0 : error;
	error = read_image(restore, image, locks);
	int closed = image_close(&image);
	FileLockEntry *entries = locks->entries;
	if (locks->count) {
		qsort(entries, locks->count, sizeof(*entries), compare_pids);
		locks->entries = arena_memdup(&restore->arena, entries, locks->count * sizeof(*entries));
	}
	free(entries);
	restore->file_locks = locks;
	return error ? error : closed;
}

static void plan_lock(const FileLockEntry *entry, struct program *program)
{
	bool is_write = entry->type == LOCK_TYPE_WRITE;
	struct flock range = {
		.l_type = is_write ? F_WRLCK : F_RDLCK,
		.l_whence = SEEK_SET,
		.l_start = entry->start,
		.l_len = entry->len,
	};

	switch (entry->flag) {
	case LOCK_SORT_FLOCK:
		PROGRAM_CALL(program, SYS_flock, entry->fd, (is_write ? LOCK_EX : LOCK_SH) | LOCK_NB);
		program_describe(program, "file lock: flock");
		break;
	case LOCK_SORT_LEASE:
		PROGRAM_CALL(program, SYS_fcntl, entry->fd, F_SETLEASE, range.l_type);
		program_describe(program, "file lease: fcntl(F_SETLEASE)");
		break;
	case LOCK_SORT_OFD:
		PROGRAM_CALL(program, SYS_fcntl, entry->fd, F_OFD_SETLK,
			     program_copy(program, &range, sizeof(range)).address);
		program_describe(program, "file lock: fcntl(F_OFD_SETLK)");
		break;
	default:
		PROGRAM_CALL(program, SYS_fcntl, entry->fd, F_SETLK,
			     program_copy(program, &range, sizeof(range)).address);
		program_describe(program, "file lock: fcntl(F_SETLK)");
	}
}

static int plan_locks(struct restore *restore, const struct restore_task *task, struct program *program)
{
	const struct restored_locks *locks = restore->file_locks;
	size_t low = 0, high = locks ? locks->count : 0;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (locks->entries[middle].pid < task->pid)
			low = middle + 1;
		else
			high = middle;
	}
	for (size_t i = low; locks && i < locks->count && locks->entries[i].pid == task->pid; i++)
		plan_lock(&locks->entries[i], program);
	return 0;
}

const struct task_kind file_lock_kind = {
	.name = "file locks",
	.plan_last = plan_locks,
};
