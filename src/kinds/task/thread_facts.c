/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/task/thread_facts.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/fd.h"

enum {
	MAX_READERS = 16,
	THREADS_WORTH_A_READER = 32,
	STATUS_BYTES = 4096,
};

const struct thread_namespace thread_namespaces[THREAD_NAMESPACE_COUNT] = {
	{"user", "user ids", false}, {"pid", "process ids", false}, {"mnt", "mounts", false},
	{"net", "network", true},    {"ipc", "IPC", true},          {"uts", "host name", true},
	{"cgroup", "cgroups", true},
};

/* All threads of the tree in a row; the readers take the next one each. */
struct reading {
	struct dump_thread **threads;
	size_t count;
	atomic_size_t next;
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

/* The kernel gives the whole status in one read if it fits; many groups make it long. */
static int read_status(int proc_dirfd, const char *path, char **ret_text)
{
	char text[STATUS_BYTES];
	_cleanup_fd_ int fd = openat(proc_dirfd, path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (length < 0)
		return -errno;
	if (length == sizeof(text) - 1)
		return read_text_at(proc_dirfd, path, ret_text, NULL);
	text[length++] = '\0';
	*ret_text = xmemdup(text, length);
	return 0;
}

static void read_thread(const struct dump_thread *thread, struct thread_facts *facts)
{
	bool leader = thread->tid == thread->task->pid;
	int dirfd = thread->task->proc_dirfd;
	char path[48];

	snprintf(path, sizeof(path), "task/%d/status", thread->tid);
	facts->status_error = read_status(dirfd, path, &facts->status);
	for (size_t i = 0; i < THREAD_NAMESPACE_COUNT && !facts->namespace_error; i++) {
		if (!leader && !thread_namespaces[i].per_thread)
			continue;
		snprintf(path, sizeof(path), "task/%d/ns/%s", thread->tid, thread_namespaces[i].name);
		facts->namespace_error = namespace_inode(dirfd, path, &facts->namespaces[i]);
	}
}

static void *read_threads(void *argument)
{
	struct reading *reading = argument;
	size_t index;

	while ((index = atomic_fetch_add(&reading->next, 1)) < reading->count)
		read_thread(reading->threads[index], reading->threads[index]->facts);
	return NULL;
}

void thread_facts_read(struct dump *dump)
{
	struct reading reading = {};
	pthread_t readers[MAX_READERS];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t started = 0, capacity = 0;

	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		struct thread_facts *facts =
			arena_alloc(&dump->arena, (task->thread_count + 1) * sizeof(struct thread_facts));
		for (size_t t = 0; t < task->thread_count; t++) {
			task->threads[t].facts = &facts[t];
			ARRAY_GROW(reading.threads, reading.count, capacity);
			reading.threads[reading.count++] = &task->threads[t];
		}
	}
	while (reading.count > THREADS_WORTH_A_READER && (long)started + 1 < cores && started < MAX_READERS &&
	       !pthread_create(&readers[started], NULL, read_threads, &reading))
		started++;
	read_threads(&reading);
	for (size_t i = 0; i < started; i++)
		pthread_join(readers[i], NULL);
	free(reading.threads);
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
