/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A list is empty when its first element is its own head. The kernel takes an entry out when its semaphores are
 * removed.
 */
#include "kernel/undo_lists.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/bpf_iterator.h"
#include "kernel/kernel_types.h"

/* What the program writes. */
struct record {
	uint64_t list, first;
};

struct undo_lists {
	int program_fd; /* or -errno */
	int head;       /* offset of the head in a list */
};

/* Returns the program's descriptor or -errno. */
static int load_program(struct undo_lists *lists)
{
	enum { TASK = 8 }; /* in the iterator's context */
	struct kernel_types *types = kernel_types_read();

	if (!types)
		return -ENOENT;
	int64_t target = kernel_types_find_function(types, "bpf_iter_task");
	int list = kernel_types_member(types, "task_struct", "sysvsem.undo_list");
	lists->head = kernel_types_member(types, "sem_undo_list", "list_proc");
	kernel_types_free(types);
	if (target < 0)
		return -EOPNOTSUPP;
	const struct bpf_reading readings[] = {
		{offsetof(struct record, list), BPF_FROM_OBJECT, list, sizeof(uint64_t)},
		{offsetof(struct record, first), offsetof(struct record, list), lists->head, sizeof(uint64_t)},
	};
	return bpf_iterator_load_readings(target, TASK, readings, ARRAY_SIZE(readings), sizeof(struct record),
					  "criu_undo");
}

struct undo_lists *undo_lists_open(void)
{
	struct undo_lists *lists = xcalloc(1, sizeof(*lists));

	lists->program_fd = load_program(lists);
	if (lists->program_fd < 0)
		log_debug("lists of semaphores cannot be read: %s", strerror(-lists->program_fd));
	return lists;
}

void undo_lists_close(struct undo_lists *lists)
{
	if (!lists)
		return;
	close_fd_pointer(&lists->program_fd);
	free(lists);
}

int undo_lists_is_empty(const struct undo_lists *lists, pid_t tid, bool *ret_empty)
{
	_cleanup_fd_ int fd = lists->program_fd < 0 ? -1 : bpf_iterator_open(lists->program_fd, tid);
	struct record record;

	if (fd < 0)
		return lists->program_fd < 0 ? lists->program_fd : fd;
	if (bpf_iterator_read(fd, &record, sizeof(record), 1) != 1)
		return -EPROTO;
	/* Who asks knows that there is a list: the kernel has let nothing be read (lockdown). */
	if (!record.list || !record.first)
		return -EPERM;
	*ret_empty = record.first == record.list + (uint64_t)lists->head;
	return 0;
}
