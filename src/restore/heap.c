/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What criu has read lies in its heap, some 20 KiB for each process of the tree, and every process is a fork that
 * looks at its own part only. Of anonymous memory a fork copies all page table entries, and each process throws them
 * away one by one: with 500 processes that was a third of the whole restore.
 * Of a private mapping of a file in which nothing was written yet a fork copies nothing; pages come when they are
 * looked at and are copied when they are written to. So the heap is put into such a file and mapped again at its place.
 */
#include "restore/heap.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/maps.h"

enum { WORTH_PROCESSES = 8 };

static int find_heap(char **ret_start, size_t *ret_bytes)
{
	_cleanup_fd_ int proc_fd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct mappings own = {};
	int error = proc_fd < 0 ? -errno : mappings_read_short(proc_fd, &own);

	if (error < 0)
		return error;
	error = -ENOENT;
	for (size_t i = 0; i < own.count && error; i++)
		if (!strcmp(own.items[i].name, "[heap]")) {
			*ret_start = (char *)own.items[i].start;
			*ret_bytes = own.items[i].end - own.items[i].start;
			error = 0;
		}
	mappings_free(&own);
	return error;
}

/* Nothing here may allocate between the copy and the mapping. */
static int move_to_file(char *start, size_t bytes)
{
	_cleanup_fd_ int fd = memfd_create("criu-heap", MFD_CLOEXEC);
	int error = fd < 0 ? -errno : write_full(fd, start, bytes);

	if (error < 0)
		return error;
	return mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED ? -errno : 0;
}

void heap_share(const struct restore *restore)
{
	char *start;
	size_t bytes;

	if (restore->task_count < WORTH_PROCESSES)
		return;
	int error = find_heap(&start, &bytes);
	if (!error)
		error = move_to_file(start, bytes);
	if (error < 0)
		log_debug("the heap stays as it is: error %d", -error);
}
