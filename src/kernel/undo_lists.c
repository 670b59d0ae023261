/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program, in C:
 *
 *	int each(struct bpf_iter__task *context)
 *	{
 *		struct { u64 list, first; } record = {};
 *
 *		if (context->task) {
 *			bpf_probe_read_kernel(&record.list, 8, &context->task->sysvsem.undo_list);
 *			bpf_probe_read_kernel(&record.first, 8, &record.list->list_proc.next);
 *			bpf_seq_write(context->meta->seq, &record, sizeof(record));
 *		}
 *		return 0;
 *	}
 *
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
	enum { TASK = 8, FIRST = -8, LIST = -16 };
	const int size = sizeof(struct record);
	struct kernel_types *types = kernel_types_read();

	if (!types)
		return -ENOENT;
	int64_t target = kernel_types_find_function(types, "bpf_iter_task");
	int list = kernel_types_member(types, "task_struct", "sysvsem.undo_list");
	lists->head = kernel_types_member(types, "sem_undo_list", "list_proc");
	kernel_types_free(types);
	if (target < 0 || list < 0 || lists->head < 0)
		return -EOPNOTSUPP;
	const struct bpf_insn program[] = {
		bpf_load(BPF_REG_6, BPF_REG_1, TASK),
		bpf_skip_if_zero(BPF_REG_6, 18), /* none: the end */
		bpf_load(BPF_REG_7, BPF_REG_1, BPF_CONTEXT_META),
		bpf_move(BPF_REG_1, BPF_REG_10),
		bpf_add(BPF_REG_1, LIST),
		bpf_set(BPF_REG_2, sizeof(uint64_t)),
		bpf_move(BPF_REG_3, BPF_REG_6),
		bpf_add(BPF_REG_3, list),
		bpf_call(BPF_FUNC_probe_read_kernel),
		bpf_move(BPF_REG_1, BPF_REG_10),
		bpf_add(BPF_REG_1, FIRST),
		bpf_set(BPF_REG_2, sizeof(uint64_t)),
		bpf_load(BPF_REG_3, BPF_REG_10, LIST),
		bpf_add(BPF_REG_3, lists->head),
		bpf_call(BPF_FUNC_probe_read_kernel), /* of no list: nothing, and 0 is written */
		BPF_WRITE_AND_END(size),
	};
	return bpf_iterator_load(target, program, ARRAY_SIZE(program), "criu_undo");
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
	if (read(fd, &record, sizeof(record)) != sizeof(record))
		return -EPROTO;
	*ret_empty = !record.list || record.first == record.list + (uint64_t)lists->head;
	return 0;
}
