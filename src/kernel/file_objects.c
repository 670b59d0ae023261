/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel/file_objects.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/bpf_iterator.h"
#include "kernel/kernel_types.h"

/* What the program writes. */
struct record {
	uint64_t number; /* in the lower half */
	uint64_t inode;
	uint64_t owner; /* struct fown_struct, made when the first one is set */
	uint64_t locks; /* struct file_lock_context, made with the inode's first lock */
};

struct file_objects_reader {
	int program_fd;
	bool knows_owners; /* before Linux 6.12 each file had the structure in it */
};

#define INTO(field) offsetof(struct record, field)

/* Returns the program's descriptor or -errno. */
static int load_program(struct file_objects_reader *reader, const struct kernel_types *types)
{
	enum { NUMBER_IN_CONTEXT = 16, FILE_IN_CONTEXT = 24 };
	const int file = BPF_FROM_OBJECT, address = sizeof(uint64_t);
	int64_t target = kernel_types_find_function(types, "bpf_iter_task_file");
	const struct bpf_reading readings[] = {
		{INTO(number), BPF_FROM_CONTEXT, NUMBER_IN_CONTEXT, address},
		{INTO(inode), file, kernel_types_member(types, "file", "f_inode"), address},
		{INTO(owner), file, kernel_types_member(types, "file", "f_owner"), address},
		{INTO(locks), INTO(inode), kernel_types_member(types, "inode", "i_flctx"), address},
	};

	reader->knows_owners = kernel_types_member(types, "fown_struct", "file") >= 0;
	if (target < 0)
		return -EOPNOTSUPP;
	return bpf_iterator_load_readings(target, FILE_IN_CONTEXT, readings, ARRAY_SIZE(readings),
					  sizeof(struct record), "criu_files");
}

struct file_objects_reader *file_objects_open(const struct kernel_types *types)
{
	struct file_objects_reader *reader = xcalloc(1, sizeof(*reader));

	reader->program_fd = types ? load_program(reader, types) : -ENOENT;
	if (reader->program_fd >= 0)
		return reader;
	log_debug("each file is asked for locks and owner: %s", strerror(-reader->program_fd));
	free(reader);
	return NULL;
}

void file_objects_close(struct file_objects_reader *reader)
{
	if (!reader)
		return;
	close_fd_pointer(&reader->program_fd);
	free(reader);
}

size_t file_objects_read(const struct file_objects_reader *reader, pid_t pid, struct file_objects *objects, size_t room)
{
	_cleanup_fd_ int fd = reader ? bpf_iterator_open(reader->program_fd, pid) : -1;
	_cleanup_free_ struct record *records = NULL;
	int before = -1;

	if (fd < 0)
		return 0;
	records = xcalloc(room, sizeof(*records));
	size_t count = bpf_iterator_read(fd, records, sizeof(*records), room);
	for (size_t i = 0; i < count; i++) {
		const struct record *record = &records[i];
		int number = (int)(uint32_t)record->number;
		/* Like the one over mappings (vm_flags.c), this iterator may begin anew at its end. */
		if (number <= before)
			return i;
		before = number;
		/* Every file has an inode: without it the kernel has let nothing be read (lockdown). */
		bool is_known = record->inode;
		objects[i] = (struct file_objects){
			.number = number,
			.may_have_owner = record->owner || !reader->knows_owners || !is_known,
			.may_be_locked = record->locks || !is_known,
		};
	}
	return count;
}
