/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clocks that count from boot.
 *
 * Programs keep points in time of CLOCK_MONOTONIC and CLOCK_BOOTTIME in their memory and trust that these clocks never
 * go back; on another machine, or after a reboot, they show something unrelated. A time namespace adds an offset to
 * both, for system calls, timers and the vDSO (the kernel shows its processes another page of data there).
 *
 * What the kernel makes hard: unshare(CLONE_NEWTIME) makes the namespace for future children only; its offsets, which
 * count from the machine's own clocks and not from those of the caller, can be written until the first process is in
 * it; a process moves itself in by setns(), while it has one thread. So the root of the tree does these three before
 * it forks, and all others are born there.
 *
 * Restore decides by the boot id, which the images hold as an extension:
 * - the same boot: the tree gets the offsets that it had, mostly none. Nothing changes, the time that it was away
 *   counts, as if it had been stopped;
 * - another one: the clocks go on from what they showed at the dump;
 * - images without it (CRIU's): like another one if the clock here is behind, else like the same.
 */
#include "kinds/ns/time_namespace.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_facts.h"

#include "timens.pb-c.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

#define NS_PER_SECOND 1000000000L
/* The kernel takes no clock that shows more: half of what fits into 64 bits of nanoseconds. */
#define LAST_SECOND (INT64_MAX / NS_PER_SECOND / 2)

enum { BOOT_ID_BYTES = 36 };

/* Both clocks, or both offsets, in nanoseconds. */
struct clock_pair {
	int64_t monotonic_ns, boottime_ns;
};

/* Of struct dump: the namespace of the root, which all tasks must share. */
struct time_namespace_dump {
	uint64_t inode;
	struct clock_pair offsets; /* from the machine's clocks */
};

/* Of struct restore. */
struct time_namespace_restore {
	bool go_on; /* else the offsets are set */
	struct clock_pair clocks, offsets;
};

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now = {};

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

/* As this process sees them. */
static struct clock_pair read_clocks(void)
{
	return (struct clock_pair){clock_ns(CLOCK_MONOTONIC), clock_ns(CLOCK_BOOTTIME)};
}

static struct clock_pair pair_sum(struct clock_pair a, struct clock_pair b)
{
	return (struct clock_pair){a.monotonic_ns + b.monotonic_ns, a.boottime_ns + b.boottime_ns};
}

static struct clock_pair pair_difference(struct clock_pair a, struct clock_pair b)
{
	return (struct clock_pair){a.monotonic_ns - b.monotonic_ns, a.boottime_ns - b.boottime_ns};
}

static bool pair_is_behind(struct clock_pair a, struct clock_pair b)
{
	return a.monotonic_ns < b.monotonic_ns || a.boottime_ns < b.boottime_ns;
}

/* The offsets of the namespace that the process gives its children. -ENOENT: the kernel has no time namespaces. */
static int read_offsets(int proc_dirfd, const char *path, struct clock_pair *ret_offsets)
{
	_cleanup_free_ char *text = NULL;
	long long seconds[2], nanoseconds[2];
	int error = read_text_at(proc_dirfd, path, &text, NULL);

	if (error < 0)
		return error;
	if (sscanf(text, "monotonic %lld %lld boottime %lld %lld", &seconds[0], &nanoseconds[0], &seconds[1],
		   &nanoseconds[1]) != 4)
		return -EPROTO;
	*ret_offsets = (struct clock_pair){seconds[0] * NS_PER_SECOND + nanoseconds[0],
					   seconds[1] * NS_PER_SECOND + nanoseconds[1]};
	return 0;
}

static int read_own_offsets(struct failure *failure, struct clock_pair *ret_offsets)
{
	int error = read_offsets(AT_FDCWD, "/proc/self/timens_offsets", ret_offsets);

	if (error == -ENOENT) {
		*ret_offsets = (struct clock_pair){};
		return 0;
	}
	return error ? fail_errno(failure, error, "time-namespace", "/proc/self/timens_offsets", "mount /proc",
				  "cannot read it")
		     : 0;
}

/* The same for all processes since the machine was started, in containers too. */
static int read_boot_id(struct failure *failure, char ret_id[BOOT_ID_BYTES + 1])
{
	static const char path[] = "/proc/sys/kernel/random/boot_id";
	_cleanup_free_ char *text = NULL;
	int error = read_text_at(AT_FDCWD, path, &text, NULL);

	if (error < 0)
		return fail_errno(failure, error, "boot-id", path, "mount /proc", "cannot read it");
	snprintf(ret_id, BOOT_ID_BYTES + 1, "%.*s", BOOT_ID_BYTES, text);
	return 0;
}

/* ---- dump ---- */

static int fail_read(struct dump *dump, const struct dump_task *task, int error)
{
	return fail_errno(&dump->failure, error, "task-time-namespace", dump_task_name(dump, task), NULL,
			  "cannot read its time namespace");
}

static int remember_root(struct dump *dump, const struct dump_task *root, uint64_t inode)
{
	struct time_namespace_dump *found = arena_alloc(&dump->arena, sizeof(*found));
	int error = inode ? read_offsets(root->proc_dirfd, "timens_offsets", &found->offsets) : 0;

	if (error < 0)
		return fail_read(dump, root, error);
	found->inode = inode;
	dump->time_namespace = found;
	return 0;
}

static int collect(struct dump *dump, struct dump_task *task)
{
	if (task->state == TASK_STATE_DEAD)
		return 0;
	const struct thread_facts *facts = task->threads[0].facts;
	uint64_t inode = facts->time;
	if (facts->namespace_error)
		return fail_read(dump, task, facts->namespace_error);
	if (!dump->time_namespace)
		return remember_root(dump, task, inode);
	if (inode == dump->time_namespace->inode)
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "task-time-namespace", dump_task_name(dump, task),
		    "dump the part of the tree that has one time namespace",
		    "it is in another time namespace than the root of the tree");
}

/* Children would get other clocks than their parent has. */
static int collect_thread(struct dump *dump, struct dump_thread *thread)
{
	const struct thread_facts *facts = thread->facts;

	if (facts->namespace_error)
		return fail_read(dump, thread->task, facts->namespace_error);
	if (!dump->time_namespace || facts->time_for_children == dump->time_namespace->inode)
		return 0;
	return fail(&dump->failure, EOPNOTSUPP, "task-time-namespace", dump_task_name(dump, thread->task),
		    "dump the program that it starts, not itself",
		    "thread %d has made a time namespace for its children (unshare)", thread->tid);
}

const struct task_kind time_namespace_kind = {
	.name = "time namespace",
	.collect = collect,
	.collect_thread = collect_thread,
};

static Timespec *make_time(struct arena *arena, int64_t ns)
{
	Timespec *time = arena_message(arena, Timespec, timespec);

	time->tv_sec = ns / NS_PER_SECOND;
	time->tv_nsec = ns % NS_PER_SECOND;
	return time;
}

int time_namespace_write(struct dump *dump)
{
	TimensEntry entry = TIMENS_ENTRY__INIT;
	struct clock_pair own, clocks;
	char boot_id[BOOT_ID_BYTES + 1];
	struct image *image;
	int error = read_own_offsets(&dump->failure, &own);

	if (!error)
		error = read_boot_id(&dump->failure, boot_id);
	if (error < 0)
		return error;
	clocks = pair_sum(pair_difference(read_clocks(), own), dump->time_namespace->offsets);
	entry.monotonic = make_time(&dump->arena, clocks.monotonic_ns);
	entry.boottime = make_time(&dump->arena, clocks.boottime_ns);
	if (!dump->options->format_plain) {
		entry.boot_id = boot_id;
		entry.has_monotonic_offset_ns = entry.has_boottime_offset_ns = true;
		entry.monotonic_offset_ns = dump->time_namespace->offsets.monotonic_ns;
		entry.boottime_offset_ns = dump->time_namespace->offsets.boottime_ns;
	}
	error = image_create(dump->images_dirfd, &dump->failure, IMAGE_TIMENS, 0, &image);
	if (error < 0)
		return error;
	image_write(image, &entry.base);
	return image_close(&image);
}

/* ---- restore ---- */

static bool time_is_valid(const Timespec *time)
{
	return time->tv_sec < LAST_SECOND && time->tv_nsec < NS_PER_SECOND;
}

static bool offset_is_valid(int64_t ns)
{
	return ns > -LAST_SECOND * NS_PER_SECOND && ns < LAST_SECOND * NS_PER_SECOND;
}

static int64_t time_ns(const Timespec *time)
{
	return (int64_t)time->tv_sec * NS_PER_SECOND + (int64_t)time->tv_nsec;
}

/* The offsets that the tree needs, or NULL in restore->time_namespace when they are criu's own. */
static int decide(struct restore *restore, const TimensEntry *entry)
{
	struct clock_pair own, offsets = {entry->monotonic_offset_ns, entry->boottime_offset_ns};
	struct clock_pair clocks = {time_ns(entry->monotonic), time_ns(entry->boottime)};
	char boot_id[BOOT_ID_BYTES + 1];
	int error = read_own_offsets(&restore->failure, &own);

	if (!error)
		error = read_boot_id(&restore->failure, boot_id);
	if (error < 0)
		return error;
	if (!entry->boot_id)
		offsets = own;
	/* A virtual machine that was set back to a snapshot has the same boot id, and clocks that are behind. */
	bool go_on = (entry->boot_id && strcmp(entry->boot_id, boot_id)) ||
		     pair_is_behind(pair_sum(pair_difference(read_clocks(), own), offsets), clocks);
	if (!go_on && offsets.monotonic_ns == own.monotonic_ns && offsets.boottime_ns == own.boottime_ns)
		return 0;
	struct time_namespace_restore *wanted = arena_alloc(&restore->arena, sizeof(*wanted));
	*wanted = (struct time_namespace_restore){go_on, clocks, offsets};
	restore->time_namespace = wanted;
	return 0;
}

int time_namespace_read(struct restore *restore)
{
	ProtobufCMessage *message;
	int error = restore_image_read_one(restore, IMAGE_TIMENS, 0, &message);

	if (error == -ENOENT && !failure_is_set(&restore->failure))
		return 0;
	if (error < 0)
		return error;
	const TimensEntry *entry = (const TimensEntry *)message;
	if (!time_is_valid(entry->monotonic) || !time_is_valid(entry->boottime) ||
	    !offset_is_valid(entry->monotonic_offset_ns) || !offset_is_valid(entry->boottime_offset_ns))
		error = fail(&restore->failure, EINVAL, "image-range", "timens-0.img", NULL,
			     "its clocks are out of range");
	if (!error)
		error = decide(restore, entry);
	image_message_free(message);
	return error;
}

/* The kernel wants the nanoseconds of an offset positive. */
static void print_offset(char *text, size_t size, const char *clock, int64_t ns)
{
	int64_t seconds = ns / NS_PER_SECOND, rest = ns % NS_PER_SECOND;

	snprintf(text, size, "%s %" PRId64 " %" PRId64 "\n", clock, rest < 0 ? seconds - 1 : seconds,
		 rest < 0 ? rest + NS_PER_SECOND : rest);
}

static int write_offsets(const struct time_namespace_restore *wanted, struct clock_pair own)
{
	struct clock_pair offsets = wanted->offsets;
	char text[2][64];

	if (wanted->go_on)
		offsets = pair_sum(pair_difference(wanted->clocks, read_clocks()), own);
	log_debug("time namespace: offsets of %" PRId64 " and %" PRId64 " ns", offsets.monotonic_ns,
		  offsets.boottime_ns);
	print_offset(text[0], sizeof(text[0]), "monotonic", offsets.monotonic_ns);
	print_offset(text[1], sizeof(text[1]), "boottime", offsets.boottime_ns);
	for (int i = 0; i < 2; i++) {
		int error = write_text_at(AT_FDCWD, "/proc/self/timens_offsets", text[i]);
		if (error < 0)
			return error;
	}
	return 0;
}

static int enter(const struct time_namespace_restore *wanted, struct clock_pair own)
{
	if (unshare(CLONE_NEWTIME) < 0)
		return -errno;
	int error = write_offsets(wanted, own);
	if (error < 0)
		return error;
	_cleanup_fd_ int fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
	return fd < 0 || setns(fd, CLONE_NEWTIME) < 0 ? -errno : 0;
}

int time_namespace_enter(struct restore *restore)
{
	struct clock_pair own;

	if (!restore->time_namespace)
		return 0;
	int error = read_own_offsets(&restore->failure, &own);
	if (error < 0)
		return error;
	error = enter(restore->time_namespace, own);
	return error ? fail_errno(&restore->failure, error, "time-namespace", NULL,
				  "the kernel needs CONFIG_TIME_NS, and criu CAP_SYS_ADMIN and CAP_SYS_TIME",
				  "cannot make the time namespace in which the tree's clocks go on")
		     : 0;
}
