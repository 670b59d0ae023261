/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A uprobe (perf, bpftrace, systemtap) is a breakpoint in a copy of a page of code, which the kernel makes in every
 * process that maps the file, and handles when it is hit. Nothing in /proc tells of it before that. In the images it
 * would be a page like any other, and the restored program would die of it where nobody traces.
 *
 * What gives it away is that code which may not be written has pages of its own. Few programs have any, so only those
 * are compared with the file.
 */
#include "kinds/mem/traced_code.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/memory.h"

enum { PAGE_BYTES = 4096, BREAKPOINT = 0xcc };

static bool is_code_of_file(const VmaEntry *vma)
{
	return (vma->status & VMA_STATUS_FILE_PRIVATE) && (vma->prot & PROT_EXEC) && !(vma->prot & PROT_WRITE);
}

/* Of one page. What cannot be read, or lies behind the end of the file, is none. */
static bool has_breakpoint(int memory_fd, int file_fd, const VmaEntry *vma, uint64_t address, uint64_t *ret_address)
{
	uint8_t page[PAGE_BYTES], original[PAGE_BYTES];

	if (pread_full(memory_fd, page, sizeof(page), address) ||
	    pread_full(file_fd, original, sizeof(original), vma->pgoff + (address - vma->start)))
		return false;
	for (size_t i = 0; i < sizeof(page); i++)
		if (page[i] == BREAKPOINT && original[i] != BREAKPOINT) {
			*ret_address = address + i;
			return true;
		}
	return false;
}

static int check_run(struct dump *dump, struct dump_task *task, const VmaEntry *vma, uint64_t start, uint64_t end)
{
	_cleanup_fd_ int memory_fd = openat(task->proc_dirfd, "mem", O_RDONLY | O_CLOEXEC);
	uint64_t found;
	char path[64];

	snprintf(path, sizeof(path), "map_files/%lx-%lx", vma->start, vma->end);
	_cleanup_fd_ int file_fd = openat(task->proc_dirfd, path, O_RDONLY | O_CLOEXEC);
	/* Nobody can trace a file that cannot be read. */
	if (memory_fd < 0 || file_fd < 0)
		return 0;
	for (uint64_t address = start; address < end; address += PAGE_BYTES) {
		if (!has_breakpoint(memory_fd, file_fd, vma, address, &found))
			continue;
		fail(&dump->failure, EOPNOTSUPP, "mapping-traced", dump_task_name(dump, task),
		     "stop tracing it: perf, bpftrace or systemtap",
		     "its code has a breakpoint at %lx: it is being traced (uprobes)", found);
		return dump_blocked(dump);
	}
	return 0;
}

/* Both lists ascend. */
static int check_task(struct dump *dump, struct dump_task *task)
{
	const struct memory_map *memory = task->memory;
	size_t at = 0;
	int error = 0;

	for (size_t i = 0; i < task->mm->n_vmas && !error; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		if (!is_code_of_file(vma))
			continue;
		while (at < memory->run_count &&
		       memory->runs[at].address + memory->runs[at].pages * PAGE_BYTES <= vma->start)
			at++;
		for (size_t r = at; r < memory->run_count && memory->runs[r].address < vma->end && !error; r++) {
			uint64_t start = memory->runs[r].address, end = start + memory->runs[r].pages * PAGE_BYTES;
			error = check_run(dump, task, vma, start > vma->start ? start : vma->start,
					  end < vma->end ? end : vma->end);
		}
	}
	return error;
}

int traced_code_refuse(struct dump *dump)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = check_task(dump, dump->tasks[i]);
	return error;
}
