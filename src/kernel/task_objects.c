/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel/task_objects.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/bpf_iterator.h"
#include "kernel/kernel_types.h"

/* What the program writes. */
struct record {
	uint64_t memory, files, directories, namespaces;
	uint64_t credentials, user_namespace;
	uint64_t pid;       /* struct pid: the thread's numbers in all pid namespaces that it is in */
	uint64_t level;     /* how many those are, less one */
	uint64_t number;    /* the one in our namespace, in the lower half */
	uint64_t namespace; /* that is ours, if the thread is in it at all */
};

struct task_objects_reader {
	int program_fd;
	uint64_t level; /* of our own pid namespace */
};

#define INTO(field) offsetof(struct record, field)

/* Returns the program's descriptor or -errno. */
static int load_program(const struct kernel_types *types, uint64_t level)
{
	enum { TASK_IN_CONTEXT = 8 };
	const int task = BPF_FROM_OBJECT, address = sizeof(uint64_t);
	int numbers = kernel_types_member(types, "pid", "numbers");
	int namespace = kernel_types_member(types, "upid", "ns");
	int number = numbers + (int)level * (namespace + address);
	int64_t target = kernel_types_find_function(types, "bpf_iter_task");
	const struct bpf_reading readings[] = {
		{INTO(memory), task, kernel_types_member(types, "task_struct", "mm"), address},
		{INTO(files), task, kernel_types_member(types, "task_struct", "files"), address},
		{INTO(directories), task, kernel_types_member(types, "task_struct", "fs"), address},
		{INTO(namespaces), task, kernel_types_member(types, "task_struct", "nsproxy"), address},
		{INTO(credentials), task, kernel_types_member(types, "task_struct", "real_cred"), address},
		{INTO(pid), task, kernel_types_member(types, "task_struct", "thread_pid"), address},
		{INTO(user_namespace), INTO(credentials), kernel_types_member(types, "cred", "user_ns"), address},
		{INTO(level), INTO(pid), kernel_types_member(types, "pid", "level"), sizeof(uint32_t)},
		{INTO(number), INTO(pid), number + kernel_types_member(types, "upid", "nr"), sizeof(uint32_t)},
		{INTO(namespace), INTO(pid), number + namespace, address},
	};

	if (target < 0 || numbers < 0 || namespace < 0)
		return -EOPNOTSUPP;
	return bpf_iterator_load_readings(target, TASK_IN_CONTEXT, readings, ARRAY_SIZE(readings),
					  sizeof(struct record), "criu_objects");
}

static bool is_whole(const struct record *record)
{
	return record->memory && record->files && record->directories && record->namespaces && record->user_namespace &&
	       record->number && record->namespace;
}

size_t task_objects_read(const struct task_objects_reader *reader, pid_t pid, struct task_objects *objects, size_t room)
{
	_cleanup_fd_ int fd = reader ? bpf_iterator_open_process(reader->program_fd, pid) : -1;
	_cleanup_free_ struct record *records = NULL;

	if (fd < 0)
		return 0;
	records = xcalloc(room, sizeof(*records));
	size_t count = bpf_iterator_read(fd, records, sizeof(*records), room);
	for (size_t i = 0; i < count; i++) {
		const struct record *record = &records[i];
		if (!is_whole(record))
			return 0;
		objects[i] = (struct task_objects){
			.memory = record->memory,
			.files = record->files,
			.directories = record->directories,
			.namespaces = record->namespaces,
			.user_namespace = record->user_namespace,
			.process_namespace = record->level == reader->level ? record->namespace : 0,
			.tid = (pid_t)record->number,
		};
	}
	return count;
}

/* How deep our own pid namespace is: as deep as our own number in the innermost. */
static int find_own_level(struct task_objects_reader *reader)
{
	_cleanup_fd_ int fd = bpf_iterator_open(reader->program_fd, (pid_t)syscall(SYS_gettid));
	struct record record;

	if (fd < 0)
		return fd;
	if (bpf_iterator_read(fd, &record, sizeof(record), 1) != 1 || !record.pid)
		return -EPROTO;
	reader->level = record.level;
	return 0;
}

static int open_reader(struct task_objects_reader *reader, const struct kernel_types *types)
{
	reader->program_fd = load_program(types, 0);
	int error = reader->program_fd < 0 ? reader->program_fd : find_own_level(reader);

	if (error < 0 || !reader->level)
		return error;
	close(reader->program_fd);
	reader->program_fd = load_program(types, reader->level);
	return reader->program_fd < 0 ? reader->program_fd : 0;
}

struct task_objects_reader *task_objects_open(const struct kernel_types *types)
{
	struct task_objects_reader *reader = xcalloc(1, sizeof(*reader));

	reader->program_fd = -1;
	int error = types ? open_reader(reader, types) : -ENOENT;
	if (!error)
		return reader;
	log_debug("what threads share is found with kcmp: %s", strerror(-error));
	task_objects_close(reader);
	return NULL;
}

void task_objects_close(struct task_objects_reader *reader)
{
	if (!reader)
		return;
	close_fd_pointer(&reader->program_fd);
	free(reader);
}

bool task_objects_same_namespaces(const struct task_objects *left, const struct task_objects *right)
{
	return left->process_namespace && left->process_namespace == right->process_namespace &&
	       left->namespaces == right->namespaces && left->user_namespace == right->user_namespace;
}
