/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptor tables, inside each task.
 *
 * Entry: all processes exist. Each open file has an owner, the first task in tree order that has it; owners open
 * their files in ascending id, publish where they are, and the others take copies with pidfd_getfd, which works
 * between any two of our processes without a word. Numbers of criu's own are kept above those of the task.
 */
#include "restore/files.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "restore/shared.h"

static bool is_target_number(const struct restore_task *task, int number)
{
	for (size_t i = 0; i < task->fd_count; i++)
		if (task->fds[i].number == number)
			return true;
	return false;
}

/* A number that the task will not use: above its highest, or in a gap when the limit is near. */
static int duplicate_aside(const struct restore *restore, int fd)
{
	const struct restore_task *task = restore->self;
	int above = task->fd_count ? task->fds[task->fd_count - 1].number + 1 : 3;
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, above);

	if (moved >= 0)
		return moved;
	for (int number = 0; number < above; number++)
		if (!is_target_number(task, number) && fcntl(number, F_GETFD) < 0)
			return dup3(fd, number, O_CLOEXEC);
	return -EMFILE;
}

int restore_park(struct restore *restore, int *fd)
{
	int moved = duplicate_aside(restore, *fd);

	if (moved < 0)
		return fail_errno(&restore->failure, EMFILE, "restore-fds", NULL, "raise the limit: ulimit -n",
				  "no free descriptor is left");
	close(*fd);
	*fd = moved;
	return 0;
}

int files_move_service_fd(struct restore *restore, int *fd)
{
	return *fd < 0 ? 0 : restore_park(restore, fd);
}

int restore_offer(struct restore *restore, uint32_t id, int fd)
{
	struct restore_file *file = restore_find_file(restore, id);
	int error = restore_park(restore, &fd);

	if (error < 0)
		return error;
	if (!file)
		return fail(&restore->failure, EINVAL, "image-reference", NULL, NULL, "there is no file %u", id);
	ARRAY_GROW(restore->offered, restore->offered_count, restore->offered_capacity);
	restore->offered[restore->offered_count++] = fd;
	shared_publish(restore, SHARED_OFFER, file->slot, fd);
	return 0;
}

static int take_from(struct restore *restore, pid_t pid, int number, int *ret_fd)
{
	_cleanup_fd_ int pidfd = -1;
	int fd;

	if (pid == getpid()) {
		fd = fcntl(number, F_DUPFD_CLOEXEC, 0);
	} else {
		pidfd = syscall(SYS_pidfd_open, pid, 0);
		fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	}
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "restore-take", NULL, NULL,
				  "cannot take descriptor %d of process %d", number, pid);
	*ret_fd = fd;
	return 0;
}

static int take(struct restore *restore, enum shared_slot_kind kind, uint32_t id, int *ret_fd)
{
	struct restore_file *file = restore_find_file(restore, id);
	pid_t pid;
	int number;

	if (!file)
		return fail(&restore->failure, EINVAL, "image-reference", NULL, NULL, "there is no file %u", id);
	int error = shared_await(restore, kind, file->slot, &pid, &number);
	return error ? error : take_from(restore, pid, number, ret_fd);
}

int restore_take_offer(struct restore *restore, uint32_t id, int *ret_fd)
{
	return take(restore, SHARED_OFFER, id, ret_fd);
}

int restore_take_file(struct restore *restore, uint32_t id, int *ret_fd)
{
	return take(restore, SHARED_FILE, id, ret_fd);
}

int restore_file_path(struct restore *restore, uint32_t id, char *path, size_t size)
{
	struct restore_file *file = restore_find_file(restore, id);
	pid_t pid;
	int number;

	if (!file)
		return fail(&restore->failure, EINVAL, "image-reference", NULL, NULL, "there is no file %u", id);
	int error = shared_await(restore, SHARED_FILE, file->slot, &pid, &number);
	if (!error)
		snprintf(path, size, "/proc/%d/fd/%d", pid, number);
	return error;
}

int restore_open_unowned(struct restore *restore, uint32_t id, int *ret_fd)
{
	struct restore_file *file = restore_find_file(restore, id);

	if (!file)
		return fail(&restore->failure, EINVAL, "image-reference", NULL, NULL, "there is no file %u", id);
	pid_t opener = shared_claim(restore, file->slot);
	if (opener == getpid() && !shared_is_published(restore, SHARED_FILE, file->slot))
		return fail(&restore->failure, ELOOP, "image-queue-loop", NULL, NULL,
			    "file %u is in flight in a queue that it must be opened for", id);
	if (opener)
		return restore_take_file(restore, id, ret_fd);
	int kept, error = file->kind->open(restore, file, &kept);
	if (!error)
		error = restore_park(restore, &kept);
	if (error < 0)
		return error;
	shared_publish(restore, SHARED_FILE, file->slot, kept);
	return take_from(restore, getpid(), kept, ret_fd);
}

int restore_assume_identity(struct restore *restore, uint32_t euid, uint32_t egid)
{
	if (!euid && !egid)
		return 0;
	if (syscall(SYS_setresgid, -1, egid, -1) < 0 || syscall(SYS_setresuid, -1, euid, -1) < 0) {
		int error = errno;
		restore_drop_identity(restore);
		return fail_errno(&restore->failure, error, "restore-identity", NULL, NULL,
				  "cannot act as user %u, group %u", euid, egid);
	}
	return 0;
}

void restore_drop_identity(struct restore *restore)
{
	uid_t uid, euid, suid;
	gid_t gid, egid, sgid;

	syscall(SYS_getresuid, &uid, &euid, &suid);
	syscall(SYS_setresuid, -1, suid, -1);
	syscall(SYS_getresgid, &gid, &egid, &sgid);
	syscall(SYS_setresgid, -1, sgid, -1);
}

/* ---- the stages ---- */

static int describe_failure(struct restore *restore, const struct restore_file *file, const struct restore_fd *slot)
{
	return fail_in(&restore->failure, "%s: fd %d (%s)", restore_task_name(restore, slot->task), slot->number,
		       file->kind->name);
}

static int place(struct restore *restore, int fd, const struct restore_fd *slot)
{
	if (fd != slot->number) {
		int moved = dup3(fd, slot->number, slot->close_on_exec ? O_CLOEXEC : 0);
		int error = errno;
		close(fd);
		if (moved < 0)
			return fail_errno(&restore->failure, error, "restore-fds", NULL,
					  error == EBADF ? "raise the limit: ulimit -n" : NULL,
					  "cannot give it number %d", slot->number);
		return 0;
	}
	if (fcntl(fd, F_SETFD, slot->close_on_exec ? FD_CLOEXEC : 0) < 0)
		return fail_errno(&restore->failure, errno, "restore-fds", NULL, NULL, "cannot set close-on-exec");
	return 0;
}

static bool is_owner(const struct restore_fd *slot)
{
	return slot->file->users[0] == slot;
}

static int compare_ids(const void *left, const void *right)
{
	const struct restore_fd *const *a = left, *const *b = right;

	return (*a)->file->id < (*b)->file->id ? -1 : (*a)->file->id > (*b)->file->id;
}

/* The slots whose files this task opens, in ascending id. */
static struct restore_fd **owned_slots(struct restore *restore, size_t *ret_count)
{
	struct restore_task *task = restore->self;
	struct restore_fd **slots = xcalloc(task->fd_count, sizeof(*slots));
	size_t count = 0;

	for (size_t i = 0; i < task->fd_count; i++)
		if (is_owner(&task->fds[i]))
			slots[count++] = &task->fds[i];
	if (count)
		qsort(slots, count, sizeof(*slots), compare_ids);
	*ret_count = count;
	return slots;
}

static int open_owned(struct restore *restore, struct restore_fd **slots, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int fd = -1, error = slots[i]->file->kind->open(restore, slots[i]->file, &fd);
		if (!error)
			error = place(restore, fd, slots[i]);
		if (error < 0)
			return describe_failure(restore, slots[i]->file, slots[i]);
		shared_publish(restore, SHARED_FILE, slots[i]->file->slot, slots[i]->number);
	}
	return 0;
}

static int take_others(struct restore *restore)
{
	struct restore_task *task = restore->self;

	for (size_t i = 0; i < task->fd_count; i++) {
		struct restore_fd *slot = &task->fds[i];
		int fd = -1;
		if (is_owner(slot))
			continue;
		int error = restore_take_file(restore, slot->file->id, &fd);
		if (!error)
			error = place(restore, fd, slot);
		if (error < 0)
			return error == -ECANCELED ? error : describe_failure(restore, slot->file, slot);
	}
	return 0;
}

/* Every entry of files.img but a few has an owner for signals in a member of the same name. */
static const FownEntry *file_owner(const FileEntry *entry)
{
	const ProtobufCMessageDescriptor *descriptor = &file_entry__descriptor;

	for (unsigned i = 0; i < descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
		if (field->type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		const ProtobufCMessage *part = *(ProtobufCMessage *const *)((const char *)entry + field->offset);
		const ProtobufCFieldDescriptor *owner =
			part ? protobuf_c_message_descriptor_get_field_by_name(part->descriptor, "fown") : NULL;
		if (owner)
			return *(FownEntry *const *)((const char *)part + owner->offset);
	}
	return NULL;
}

/* F_SETOWN remembers who called it: signals are sent with those rights. */
static int set_owner(struct restore *restore, const struct restore_file *file, int fd)
{
	const FownEntry *fown = file_owner(file->entry);

	if (!fown || (!fown->pid && !fown->signum))
		return 0;
	if (fown->signum && fcntl(fd, F_SETSIG, fown->signum) < 0)
		return fail_errno(&restore->failure, errno, "restore-fown", NULL, NULL, "cannot set its signal");
	if (!fown->pid)
		return 0;
	struct f_owner_ex owner = {.type = fown->pid_type, .pid = fown->pid};
	int error =
		syscall(SYS_setresuid, fown->uid, fown->euid, 0) < 0 || fcntl(fd, F_SETOWN_EX, &owner) < 0 ? errno : 0;
	if (syscall(SYS_setresuid, 0, 0, 0) < 0 || error)
		return fail_errno(&restore->failure, error ? error : errno, "restore-fown", NULL, NULL,
				  "cannot set its owner, process %u", fown->pid);
	return 0;
}

static int run_operation(struct restore *restore, struct restore_fd **slots, size_t count, bool last)
{
	for (size_t i = 0; i < count; i++) {
		struct restore_file *file = slots[i]->file;
		int (*operation)(struct restore *, struct restore_file *, int) =
			last ? file->kind->finish : file->kind->connect;
		int error = operation ? operation(restore, file, slots[i]->number) : 0;
		if (!error && last)
			error = set_owner(restore, file, slots[i]->number);
		if (error < 0)
			return error == -ECANCELED ? error : describe_failure(restore, file, slots[i]);
	}
	return 0;
}

static int finish_task(struct restore *restore)
{
	int error = 0;

	for (const struct fd_kind *const *kind = fd_kinds; *kind && !error; kind++)
		error = (*kind)->finish_task ? (*kind)->finish_task(restore) : 0;
	return error;
}

int files_restore(struct restore *restore)
{
	size_t count;
	_cleanup_free_ struct restore_fd **owned = owned_slots(restore, &count);
	int error = open_owned(restore, owned, count);

	if (!error)
		error = take_others(restore);
	if (!error)
		error = shared_wait(restore, BARRIER_OPENED);
	if (!error)
		error = run_operation(restore, owned, count, false);
	if (!error)
		error = shared_wait(restore, BARRIER_CONNECTED);
	if (!error)
		error = run_operation(restore, owned, count, true);
	if (!error)
		error = finish_task(restore);
	return error ? error : shared_wait(restore, BARRIER_FINISHED);
}

void files_close_others(const struct restore *restore, int limit, const int *keep, size_t keep_count)
{
	const struct restore_task *task = restore->self;
	size_t slot = 0;
	int first = 0;

	/* Close what lies between the numbers that stay; the table ascends, the other list is short. */
	for (;;) {
		int next = limit;
		for (size_t i = 0; i < keep_count; i++)
			if (keep[i] >= first && keep[i] < next)
				next = keep[i];
		while (slot < task->fd_count && task->fds[slot].number < first)
			slot++;
		if (slot < task->fd_count && task->fds[slot].number < next)
			next = task->fds[slot].number;
		if (next > first)
			close_range(first, next == INT32_MAX ? ~0U : (unsigned)next - 1, 0);
		if (next == limit)
			return;
		first = next + 1;
	}
}
