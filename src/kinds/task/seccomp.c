/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seccomp: strict mode, or a chain of filters that grew one by one and that fork and threads share.
 *
 * seccomp.img holds each filter once; `prev` is the older one it was added to, a thread names its newest. At restore
 * the chain is installed from its oldest filter on. Two facts decide where:
 * - without no_new_privs, installing needs CAP_SYS_ADMIN, so it comes before the thread's credentials;
 * - filters judge the interpreter's calls too, unless the thread is traced with PTRACE_O_SUSPEND_SECCOMP, as all
 *   threads are when their last programs run.
 * Threads with one and the same chain get it from the leader (TSYNC): it stays shared, as later TSYNC calls of theirs
 * need.
 */
#include "kinds/task/seccomp.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_status.h"

#include "seccomp.pb-c.h"

enum { NO_FILTER = -1, RESTORABLE_FLAGS = SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW };

struct seccomp_metadata_request {
	uint64_t filter_index, flags;
};

/* The filters known so far; an index is the filter's number in the image. */
struct seccomp_filters {
	SeccompFilter **items; /* in the dump's arena */
	size_t count, capacity;
};

/* ---- dump ---- */

static bool is_same(const SeccompFilter *filter, int64_t previous, uint32_t flags, const void *code, size_t bytes)
{
	int64_t filter_previous = filter->has_prev ? (int64_t)filter->prev : NO_FILTER;

	return filter_previous == previous && filter->flags == flags && filter->filter.len == bytes &&
	       !memcmp(filter->filter.data, code, bytes);
}

/* The number of this filter on top of @previous. */
static int64_t intern(struct dump *dump, int64_t previous, uint32_t flags, const void *code, size_t bytes)
{
	struct seccomp_filters *filters = dump->seccomp;

	for (size_t i = 0; i < filters->count; i++)
		if (is_same(filters->items[i], previous, flags, code, bytes))
			return i;
	if (filters->count == filters->capacity) {
		size_t capacity = filters->capacity ? filters->capacity * 2 : 16;
		SeccompFilter **items = arena_alloc(&dump->arena, capacity * sizeof(*items));
		if (filters->count)
			memcpy(items, filters->items, filters->count * sizeof(*items));
		filters->items = items;
		filters->capacity = capacity;
	}
	SeccompFilter *filter = arena_message(&dump->arena, SeccompFilter, seccomp_filter);
	filter->filter.data = arena_memdup(&dump->arena, code, bytes);
	filter->filter.len = bytes;
	filter->has_prev = previous != NO_FILTER;
	filter->prev = previous != NO_FILTER ? previous : 0;
	filter->has_flags = flags != 0;
	filter->flags = flags;
	filters->items[filters->count] = filter;
	return filters->count++;
}

static int fail_filter(struct dump *dump, struct dump_thread *thread, int error)
{
	return fail_errno(&dump->failure, error, "task-seccomp", dump_task_name(dump, thread->task),
			  error == EACCES ? "criu must have CAP_SYS_ADMIN and no seccomp filter itself" : NULL,
			  "cannot read the seccomp filters of thread %d", thread->tid);
}

/* Filter 0 is the oldest. Returns 1 with *ret_number, 0 behind the last one, or a failure. */
static int read_filter(struct dump *dump, struct dump_thread *thread, unsigned long index, int64_t previous,
		       int64_t *ret_number)
{
	struct seccomp_metadata_request metadata = {.filter_index = index};
	struct sock_filter code[BPF_MAXINSNS];
	long count = ptrace(PTRACE_SECCOMP_GET_FILTER, thread->tid, index, NULL);

	if (count < 0)
		return errno == ENOENT && index ? 0 : fail_filter(dump, thread, errno);
	if (count > BPF_MAXINSNS)
		return fail_filter(dump, thread, E2BIG);
	if (ptrace(PTRACE_SECCOMP_GET_FILTER, thread->tid, index, code) != count)
		return fail_filter(dump, thread, errno);
	if (ptrace(PTRACE_SECCOMP_GET_METADATA, thread->tid, sizeof(metadata), &metadata) < 0)
		return fail_filter(dump, thread, errno);
	*ret_number = intern(dump, previous, metadata.flags, code, count * sizeof(code[0]));
	return 1;
}

static int collect_thread(struct dump *dump, struct dump_thread *thread)
{
	const struct thread_status *status;
	int64_t number = NO_FILTER;
	int error = thread_status_get(dump, thread, &status);

	if (error < 0 || status->seccomp_mode == SECCOMP_MODE_DISABLED)
		return error;
	if (!dump->seccomp)
		dump->seccomp = arena_alloc(&dump->arena, sizeof(*dump->seccomp));
	thread->core->thread_core->has_seccomp_mode = true;
	thread->core->thread_core->seccomp_mode = status->seccomp_mode;
	if (status->seccomp_mode != SECCOMP_MODE_FILTER)
		return 0;
	for (unsigned long index = 0;; index++) {
		int found = read_filter(dump, thread, index, number, &number);
		if (found < 0)
			return found;
		if (!found)
			break;
	}
	thread->core->thread_core->has_seccomp_filter = true;
	thread->core->thread_core->seccomp_filter = number;
	return 0;
}

int seccomp_write(struct dump *dump)
{
	SeccompEntry entry = SECCOMP_ENTRY__INIT;
	struct image *image;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_SECCOMP, 0, &image);

	if (error < 0)
		return error;
	if (dump->seccomp) {
		entry.n_seccomp_filters = dump->seccomp->count;
		entry.seccomp_filters = dump->seccomp->items;
	}
	image_write(image, &entry.base);
	return image_close(&image);
}

/* ---- restore ---- */

static int mode_of(const CoreEntry *thread)
{
	return thread->thread_core->has_seccomp_mode ? (int)thread->thread_core->seccomp_mode : SECCOMP_MODE_DISABLED;
}

static int load(struct restore *restore)
{
	ProtobufCMessage *message;

	if (restore->seccomp)
		return 0;
	int error = restore_image_read_one(restore, IMAGE_SECCOMP, 0, &message);
	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return fail(&restore->failure, ENOENT, "image-missing", "seccomp.img", NULL,
			    "it does not exist, but a task has filters");
	if (error < 0)
		return error;
	restore->seccomp = (SeccompEntry *)message;
	return 0;
}

static int check_filter(struct restore *restore, const SeccompFilter *filter, uint32_t number)
{
	size_t bytes = filter->filter.len;

	if (!bytes || bytes % sizeof(struct sock_filter) || bytes / sizeof(struct sock_filter) > BPF_MAXINSNS)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "seccomp filter %u has %zu bytes",
			    number, bytes);
	/* Older filters come first, so that no chain can be endless. */
	if (filter->has_prev && filter->prev >= number)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
			    "seccomp filter %u was added to the later filter %u", number, filter->prev);
	if (filter->has_flags && filter->flags & ~RESTORABLE_FLAGS)
		return fail(&restore->failure, EOPNOTSUPP, "task-seccomp-flags", NULL, NULL,
			    "seccomp filter %u has flags %#x that cannot be restored", number, filter->flags);
	return 0;
}

static bool can_suspend(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {};

	return !syscall(SYS_capget, &header, data) && data[0].effective & 1U << CAP_SYS_ADMIN &&
	       prctl(PR_GET_SECCOMP) == SECCOMP_MODE_DISABLED;
}

static int check_thread(struct restore *restore, const CoreEntry *thread)
{
	int mode = mode_of(thread);

	if (mode == SECCOMP_MODE_DISABLED)
		return 0;
	if (!can_suspend())
		return fail(&restore->failure, EPERM, "task-seccomp", NULL,
			    "criu must have CAP_SYS_ADMIN and no seccomp filter itself", "it is restricted by seccomp");
	if (mode == SECCOMP_MODE_STRICT)
		return 0;
	if (mode != SECCOMP_MODE_FILTER || !thread->thread_core->has_seccomp_filter)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "its seccomp mode %d is impossible",
			    mode);
	int error = load(restore);
	if (error < 0)
		return error;
	if (thread->thread_core->seccomp_filter >= restore->seccomp->n_seccomp_filters)
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "there is no seccomp filter %u",
			    thread->thread_core->seccomp_filter);
	for (uint32_t number = thread->thread_core->seccomp_filter;;) {
		const SeccompFilter *filter = restore->seccomp->seccomp_filters[number];
		error = check_filter(restore, filter, number);
		if (error < 0 || !filter->has_prev)
			return error;
		number = filter->prev;
	}
}

static int check(struct restore *restore, const struct restore_task *task)
{
	for (size_t i = 0; task->state != TASK_STATE_DEAD && i < task->thread_count; i++)
		if (check_thread(restore, task->thread_cores[i]) < 0)
			return fail_in(&restore->failure, "%s", restore_task_name(restore, task));
	return 0;
}

/* All threads have the filters of the leader: they are installed once, for all of them. */
static bool is_common(const struct restore_task *task)
{
	for (size_t i = 1; i < task->thread_count; i++)
		if (mode_of(task->thread_cores[i]) != SECCOMP_MODE_FILTER ||
		    task->thread_cores[i]->thread_core->seccomp_filter != task->core->thread_core->seccomp_filter)
			return false;
	return task->thread_count > 1;
}

static void plan_chain(const struct restore *restore, struct program *program, uint32_t number, uint32_t flags)
{
	const SeccompFilter *filter = restore->seccomp->seccomp_filters[number];
	struct {
		uint16_t length;
		uint64_t code;
	} filter_program = {.length = filter->filter.len / sizeof(struct sock_filter)};

	if (filter->has_prev)
		plan_chain(restore, program, filter->prev, flags);
	filter_program.code = program_copy(program, filter->filter.data, filter->filter.len).address;
	remote_t where = program_copy(program, &filter_program, sizeof(filter_program));
	/* With TSYNC a positive result is the thread that could not follow. */
	size_t step = PROGRAM_CALL(program, SYS_seccomp, SECCOMP_SET_MODE_FILTER,
				   flags | (filter->has_flags ? filter->flags : 0), where.address);
	program_expect(program, step, 0);
	program_describe(program, "seccomp(SECCOMP_SET_MODE_FILTER)");
}

bool seccomp_is_late(const struct restore_task *task, const CoreEntry *thread, pid_t tid)
{
	int mode = mode_of(thread);

	return mode == SECCOMP_MODE_STRICT || (mode == SECCOMP_MODE_FILTER && (tid == task->pid || !is_common(task)));
}

static int plan_last_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread,
			    pid_t tid, struct program *program)
{
	if (!seccomp_is_late(task, thread, tid))
		return 0;
	if (mode_of(thread) == SECCOMP_MODE_FILTER) {
		plan_chain(restore, program, thread->thread_core->seccomp_filter,
			   is_common(task) ? SECCOMP_FILTER_FLAG_TSYNC : 0);
		return 0;
	}
	PROGRAM_CALL(program, SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0);
	program_describe(program, "seccomp(SECCOMP_SET_MODE_STRICT)");
	return 0;
}

const struct task_kind seccomp_kind = {
	.name = "seccomp",
	.collect_thread = collect_thread,
	.check = check,
	.plan_last_thread = plan_last_thread,
};
