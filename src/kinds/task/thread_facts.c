/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each name that is looked up below /proc/PID makes an inode, which the end of the thread takes down again, one after
 * the other while criu waits for it. So namespaces are asked for by pidfd; links are for kernels before Linux 6.11.
 * Nothing is asked of a thread that is known to be in the namespaces of one that was asked before: the root's leader,
 * then each process's.
 */
#include "kinds/task/thread_facts.h"

#include <fcntl.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/parallel.h"
#include "kernel/proc.h"
#include "kernel/uapi.h"

enum { THREADS_WORTH_A_READER = 32 };

const struct thread_namespace thread_namespaces[THREAD_NAMESPACE_COUNT] = {
	{"user", "user ids", false, PIDFD_GET_USER_NAMESPACE},   {"pid", "process ids", false, PIDFD_GET_PID_NAMESPACE},
	{"mnt", "mounts", false, PIDFD_GET_MNT_NAMESPACE},       {"net", "network", true, PIDFD_GET_NET_NAMESPACE},
	{"ipc", "IPC", true, PIDFD_GET_IPC_NAMESPACE},           {"uts", "host name", true, PIDFD_GET_UTS_NAMESPACE},
	{"cgroup", "cgroups", true, PIDFD_GET_CGROUP_NAMESPACE},
};

static const struct thread_namespace time_namespace = {.name = "time", .request = PIDFD_GET_TIME_NAMESPACE},
				     time_for_children = {.name = "time_for_children",
							  .request = PIDFD_GET_TIME_FOR_CHILDREN_NAMESPACE};

/* Threads of the tree in a row. */
struct reading {
	struct dump *dump;
	struct dump_thread **threads;
	size_t count, capacity;
};

static int namespace_inode(int dirfd, const char *path, uint64_t *ret_inode)
{
	char link[64], *digits;
	ssize_t length = readlinkat(dirfd, path, link, sizeof(link) - 1);

	if (length < 0)
		return errno == ENOENT ? 0 : -errno;
	link[length] = '\0';
	digits = strchr(link, '[');
	*ret_inode = digits ? strtoull(digits + 1, NULL, 10) : 0;
	return *ret_inode ? 0 : -EPROTO;
}

/* Of the leader, the files of the process are the same and nearer. */
static bool is_leader(const struct dump_thread *thread)
{
	return thread->tid == thread->task->pid;
}

/* Where the namespaces of one thread are asked for. */
struct namespace_source {
	int pidfd, dirfd; /* -1: of no use; the directory is opened when a link is needed */
	const struct dump_thread *thread;
};

static int namespace_link(struct namespace_source *source, const char *name, uint64_t *ret_inode)
{
	const struct dump_thread *thread = source->thread;
	char path[48];

	/* Relative to their directory: the way to a thread's links is longer than the links. */
	snprintf(path, sizeof(path), "task/%d/ns", thread->tid);
	if (source->dirfd < 0)
		source->dirfd = openat(thread->task->proc_dirfd, is_leader(thread) ? "ns" : path,
				       O_PATH | O_DIRECTORY | O_CLOEXEC);
	return source->dirfd < 0 ? -errno : namespace_inode(source->dirfd, name, ret_inode);
}

static int read_namespace(struct namespace_source *source, const struct thread_namespace *kind, uint64_t *ret_inode)
{
	_cleanup_fd_ int fd = source->pidfd < 0 ? -1 : ioctl(source->pidfd, kind->request, 0);
	struct stat stat;

	if (fd < 0 || fstat(fd, &stat) < 0)
		return namespace_link(source, kind->name, ret_inode);
	*ret_inode = stat.st_ino;
	return 0;
}

static int read_all_namespaces(struct namespace_source *source, struct thread_facts *facts)
{
	bool leader = is_leader(source->thread);

	for (size_t i = 0; i < THREAD_NAMESPACE_COUNT; i++) {
		const struct thread_namespace *kind = &thread_namespaces[i];
		int error = leader || kind->per_thread ? read_namespace(source, kind, &facts->namespaces[i]) : 0;
		if (error < 0)
			return error;
	}
	int error = leader ? read_namespace(source, &time_namespace, &facts->time) : 0;
	return error ? error : read_namespace(source, &time_for_children, &facts->time_for_children);
}

/* @like: who was asked before. The facts of leaders hold all that those of other threads do. */
static int read_namespaces(const struct dump_thread *thread, const struct dump_thread *like, struct thread_facts *facts)
{
	if (like != thread && task_objects_same_namespaces(&like->facts->objects, &facts->objects)) {
		memcpy(facts->namespaces, like->facts->namespaces, sizeof(facts->namespaces));
		facts->time_for_children = like->facts->time_for_children;
		facts->time = like->facts->time;
		return like->facts->namespace_error;
	}
	_cleanup_fd_ int pidfd = is_leader(thread) ? -1 : pidfd_open(thread->tid, PIDFD_THREAD);
	struct namespace_source source = {
		.pidfd = is_leader(thread) ? thread->task->pidfd : pidfd,
		.dirfd = -1,
		.thread = thread,
	};
	int error = read_all_namespaces(&source, facts);

	close_fd_pointer(&source.dirfd);
	return error;
}

static void read_status(const struct dump_thread *thread)
{
	char path[48];

	snprintf(path, sizeof(path), "task/%d/status", thread->tid);
	thread->facts->status_error = proc_read_text(thread->task->proc_dirfd, is_leader(thread) ? "status" : path,
						     &thread->facts->status, NULL);
}

static void read_leader(void *context, size_t index)
{
	const struct reading *reading = context;
	const struct dump_thread *thread = reading->threads[index];

	read_status(thread);
	if (index)
		thread->facts->namespace_error = read_namespaces(thread, reading->threads[0], thread->facts);
}

static void read_other(void *context, size_t index)
{
	const struct reading *reading = context;
	const struct dump_thread *thread = reading->threads[index];

	read_status(thread);
	thread->facts->namespace_error = read_namespaces(thread, &thread->task->threads[0], thread->facts);
}

static void read_status_of(void *context, size_t index)
{
	const struct reading *reading = context;

	read_status(reading->threads[index]);
}

/* The kernel's order of threads is nearly ours. */
static void read_objects(void *context, size_t index)
{
	const struct reading *reading = context;
	const struct dump_task *task = reading->threads[index]->task;
	_cleanup_free_ struct task_objects *objects = xcalloc(task->thread_count, sizeof(*objects));
	size_t found = task_objects_read(reading->dump->task_objects, task->pid, objects, task->thread_count);

	for (size_t i = 0, t = 0; i < found; i++) {
		size_t tried = 0;
		while (tried < task->thread_count && task->threads[t].tid != objects[i].tid) {
			t = (t + 1) % task->thread_count;
			tried++;
		}
		if (tried == task->thread_count)
			return;
		task->threads[t].facts->objects = objects[i];
	}
}

/* @others: the threads that are no leaders; else only those. */
static struct reading list_threads(struct dump *dump, bool others)
{
	struct reading reading = {.dump = dump};

	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		size_t end = others || !task->thread_count ? task->thread_count : 1;
		for (size_t t = others ? 1 : 0; t < end; t++) {
			ARRAY_GROW(reading.threads, reading.count, reading.capacity);
			reading.threads[reading.count++] = &task->threads[t];
		}
	}
	return reading;
}

static void make_facts(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		struct thread_facts *facts =
			arena_alloc(&dump->arena, (task->thread_count + 1) * sizeof(struct thread_facts));
		for (size_t t = 0; t < task->thread_count; t++)
			task->threads[t].facts = &facts[t];
	}
}

void thread_facts_read(struct dump *dump)
{
	struct reading leaders = list_threads(dump, false), others = list_threads(dump, true);
	struct dump_thread *root = leaders.threads[0];

	make_facts(dump);
	if (dump->task_objects)
		parallel_for(leaders.count, THREADS_WORTH_A_READER, read_objects, &leaders);
	root->facts->namespace_error = read_namespaces(root, root, root->facts);
	parallel_for(leaders.count, THREADS_WORTH_A_READER, read_leader, &leaders);
	parallel_for(others.count, THREADS_WORTH_A_READER, read_other, &others);
	free(leaders.threads);
	free(others.threads);
}

void thread_facts_read_statuses(struct dump *dump)
{
	struct reading leaders = list_threads(dump, false);

	make_facts(dump);
	parallel_for(leaders.count, THREADS_WORTH_A_READER, read_status_of, &leaders);
	free(leaders.threads);
}

void thread_facts_release(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++) {
			struct dump_thread *thread = &dump->tasks[i]->threads[t];
			if (thread->facts)
				free(thread->facts->status);
			thread->facts = NULL;
		}
}

int thread_facts_own_namespaces(uint64_t ret_inodes[THREAD_NAMESPACE_COUNT])
{
	for (size_t i = 0; i < THREAD_NAMESPACE_COUNT; i++) {
		char path[48];
		snprintf(path, sizeof(path), "/proc/self/ns/%s", thread_namespaces[i].name);
		ret_inodes[i] = 0;
		int error = namespace_inode(AT_FDCWD, path, &ret_inodes[i]);
		if (error < 0)
			return error;
	}
	return 0;
}
