/* SPDX-License-Identifier: Apache-2.0 */
#include "model/lazy_memory.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"

enum {
	STATE_MAGIC = 0x4c5a5932,
	FIRST_OFFSET = 4096,
	MAX_RANGES = 1 << 18, /* four times what a process may have of mappings */
};

/* Behind both places for ranges. */
#define BITS_OFFSET ((off_t)1 << 32)

struct state_head {
	uint32_t magic, pid;
	uint64_t offset, count;
};

int lazy_state_create(void)
{
	int fd = memfd_create("criu-lazy-ranges", MFD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* Two places in turn; the head, which is written last and at once, says which of them holds. */
int lazy_state_write(int fd, uint32_t pid, const struct lazy_ranges *ranges)
{
	const uint64_t second = FIRST_OFFSET + MAX_RANGES * sizeof(struct lazy_range);
	struct state_head head = {};

	if (ranges->count > MAX_RANGES)
		return -E2BIG;
	if (pread_full(fd, &head, sizeof(head), 0) < 0)
		head.offset = second;
	head = (struct state_head){
		.magic = STATE_MAGIC,
		.pid = pid,
		.offset = head.offset == FIRST_OFFSET ? second : FIRST_OFFSET,
		.count = ranges->count,
	};
	int error = pwrite_full(fd, ranges->items, ranges->count * sizeof(*ranges->items), (off_t)head.offset);
	return error ? error : pwrite_full(fd, &head, sizeof(head), 0);
}

int lazy_state_read(int fd, uint32_t *ret_pid, struct lazy_ranges *ret_ranges)
{
	struct state_head head;
	int error = pread_full(fd, &head, sizeof(head), 0);

	if (error)
		return error;
	if (head.magic != STATE_MAGIC || head.count > MAX_RANGES || head.offset > INT32_MAX)
		return -EINVAL;
	struct lazy_range *items = xcalloc(head.count + 1, sizeof(*items));
	error = pread_full(fd, items, head.count * sizeof(*items), (off_t)head.offset);
	if (error) {
		free(items);
		return error;
	}
	*ret_pid = head.pid;
	*ret_ranges = (struct lazy_ranges){items, head.count, head.count + 1};
	return 0;
}

uint8_t *lazy_state_bits(int fd, size_t bytes)
{
	struct stat stat;

	if (fstat(fd, &stat) < 0 ||
	    (stat.st_size < BITS_OFFSET + (off_t)bytes && ftruncate(fd, BITS_OFFSET + (off_t)bytes) < 0))
		return NULL;
	void *bits = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BITS_OFFSET);
	return bits == MAP_FAILED ? NULL : bits;
}
