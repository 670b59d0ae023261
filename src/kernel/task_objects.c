/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program, in C:
 *
 *	int each(struct bpf_iter__task *context)
 *	{
 *		struct record record = {};
 *		struct task_struct *task = context->task;
 *
 *		if (task) {
 *			bpf_probe_read_kernel(&record.memory, 8, &task->mm);
 *			… and so on through the table below …
 *			bpf_seq_write(context->meta->seq, &record, sizeof(record));
 *		}
 *		return 0;
 *	}
 *
 * kernel/bpf_iterator.h tells why it is assembled here.
 */
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

/* One reading of the program: from a member of the task, or of what an earlier reading has found. */
struct reading {
	size_t into; /* offset in the record */
	int from;    /* offset in the record of the address; -1 = the task */
	int offset;  /* of what is read from there */
	int bytes;
};

enum {
	TASK_IN_CONTEXT = 8,
	INSTRUCTIONS_OF_A_READING = 6,
	READINGS = 10,
	FIRST_INSTRUCTIONS = 4,
	LAST_INSTRUCTIONS = 7
};

static size_t add_reading(struct bpf_insn *program, const struct reading *reading)
{
	const int size = sizeof(struct record);
	const struct bpf_insn instructions[INSTRUCTIONS_OF_A_READING] = {
		bpf_move(BPF_REG_1, BPF_REG_10),
		bpf_add(BPF_REG_1, (int)reading->into - size),
		bpf_set(BPF_REG_2, reading->bytes),
		reading->from < 0 ? bpf_move(BPF_REG_3, BPF_REG_6)
				  : bpf_load(BPF_REG_3, BPF_REG_10, reading->from - size),
		bpf_add(BPF_REG_3, reading->offset),
		bpf_call(BPF_FUNC_probe_read_kernel),
	};

	memcpy(program, instructions, sizeof(instructions));
	return INSTRUCTIONS_OF_A_READING;
}

/* Returns the program's descriptor or -errno. */
static int load(int64_t target, const struct reading *readings)
{
	const int size = sizeof(struct record), words = size / (int)sizeof(uint64_t);
	struct bpf_insn program[FIRST_INSTRUCTIONS + sizeof(struct record) / sizeof(uint64_t) +
				READINGS * INSTRUCTIONS_OF_A_READING + LAST_INSTRUCTIONS];
	const struct bpf_insn last[LAST_INSTRUCTIONS] = {BPF_WRITE_AND_END(size)};
	size_t count = 0;

	program[count++] = bpf_load(BPF_REG_6, BPF_REG_1, TASK_IN_CONTEXT);
	program[count++] = bpf_skip_if_zero(BPF_REG_6, (int)ARRAY_SIZE(program) - 4); /* none: the end */
	program[count++] = bpf_load(BPF_REG_7, BPF_REG_1, BPF_CONTEXT_META);
	program[count++] = bpf_set(BPF_REG_0, 0);
	for (int word = 0; word < words; word++)
		program[count++] = bpf_store(BPF_REG_10, word * (int)sizeof(uint64_t) - size, BPF_REG_0);
	for (size_t i = 0; i < READINGS; i++)
		count += add_reading(&program[count], &readings[i]);
	memcpy(&program[count], last, sizeof(last));
	return bpf_iterator_load(target, program, ARRAY_SIZE(program), "criu_objects");
}

#define INTO(field) offsetof(struct record, field)

/* Returns the program's descriptor or -errno. */
static int load_program(const struct kernel_types *types, uint64_t level)
{
	const int task = -1, address = sizeof(uint64_t);
	int numbers = kernel_types_member(types, "pid", "numbers");
	int namespace = kernel_types_member(types, "upid", "ns");
	int number = numbers + (int)level * (namespace + address);
	int64_t target = kernel_types_find_function(types, "bpf_iter_task");
	const struct reading readings[READINGS] = {
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
	for (size_t i = 0; i < READINGS; i++)
		if (readings[i].offset < 0)
			return -EOPNOTSUPP;
	return load(target, readings);
}

static bool is_whole(const struct record *record)
{
	return record->memory && record->files && record->directories && record->namespaces && record->user_namespace &&
	       record->number && record->namespace;
}

/* @room records at most. Returns their number. */
static size_t read_records(int fd, struct record *records, size_t room)
{
	size_t bytes = 0;

	while (bytes < room * sizeof(*records)) {
		ssize_t got = read(fd, (char *)records + bytes, room * sizeof(*records) - bytes);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got <= 0)
			break;
		bytes += (size_t)got;
	}
	return bytes / sizeof(*records);
}

size_t task_objects_read(const struct task_objects_reader *reader, pid_t pid, struct task_objects *objects, size_t room)
{
	_cleanup_fd_ int fd = reader ? bpf_iterator_open_process(reader->program_fd, pid) : -1;
	_cleanup_free_ struct record *records = NULL;

	if (fd < 0)
		return 0;
	records = xcalloc(room, sizeof(*records));
	size_t count = read_records(fd, records, room);
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
	if (read_records(fd, &record, 1) != 1 || !record.pid)
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
