/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "kernel/maps.h"
#include "kinds/mem/mem_kind.h"
#include "restore/memory.h"

enum { PAGE_BYTES = 4096, ZERO_BYTES = 16 * PAGE_BYTES };

/* ---- while memory arrives ---- */

/* Where the host gives huge pages to whoever touches memory, a copy of small ones would take them from the program. */
static bool gives_huge_pages_unasked(void)
{
	_cleanup_fd_ int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);
	char text[64] = "";

	return fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && strstr(text, "[always]");
}

void preload_begin(struct preload *preload)
{
	/* Nobody answers faults: what touches a page that is not there gets SIGBUS. */
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS};

	*preload = (struct preload){.userfault_fd = -1};
	if (gives_huge_pages_unasked())
		return;
	preload->userfault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (preload->userfault_fd >= 0 && ioctl(preload->userfault_fd, UFFDIO_API, &api) < 0)
		preload_settle(preload);
}

void preload_settle(struct preload *preload)
{
	close_fd_pointer(&preload->userfault_fd);
	for (size_t i = 0; i < preload->count; i++)
		preload->ranges[i].is_registered = false;
}

/* The first range that ends behind @address. */
static size_t first_range(const struct preload *preload, uint64_t address)
{
	size_t low = 0, high = preload->count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (preload->ranges[middle].end <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void insert_range(struct preload *preload, size_t index, struct preload_range range)
{
	ARRAY_GROW(preload->ranges, preload->count, preload->capacity);
	memmove(&preload->ranges[index + 1], &preload->ranges[index],
		(preload->count - index) * sizeof(*preload->ranges));
	preload->ranges[index] = range;
	preload->count++;
}

static bool register_range(const struct preload *preload, const struct preload_range *range)
{
	struct uffdio_register call = {
		.range = {range->start, range->end - range->start},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return preload->userfault_fd >= 0 && !ioctl(preload->userfault_fd, UFFDIO_REGISTER, &call);
}

static int map_gap(struct preload *preload, size_t index, struct preload_range gap)
{
	void *address = mmap((void *)gap.start, gap.end - gap.start, PROT_READ | PROT_WRITE,
			     (gap.flags & ~PRELOAD_HUGE) | MAP_FIXED_NOREPLACE, -1, 0);

	if (address == MAP_FAILED)
		return errno == EEXIST ? 0 : -errno; /* criu's own memory: received into a store */
	if (gap.flags & PRELOAD_HUGE)
		madvise(address, gap.end - gap.start, MADV_HUGEPAGE);
	else
		gap.is_registered = register_range(preload, &gap);
	insert_range(preload, index, gap);
	return 1;
}

int preload_map(struct preload *preload, uint64_t start, uint64_t end, uint32_t flags)
{
	while (start < end) {
		size_t index = first_range(preload, start);
		struct preload_range *next = index < preload->count ? &preload->ranges[index] : NULL;
		if (next && next->start <= start) {
			start = next->end;
			continue;
		}
		struct preload_range gap = {
			.start = start,
			.end = next && next->start < end ? next->start : end,
			.flags = flags,
		};
		int mapped = map_gap(preload, index, gap);
		if (mapped < 0)
			return mapped;
		start = gap.end;
	}
	return 0;
}

void preload_unmap(struct preload *preload, uint64_t start, uint64_t end)
{
	size_t index = first_range(preload, start);

	while (index < preload->count && preload->ranges[index].start < end) {
		struct preload_range *range = &preload->ranges[index], rest = *range;
		uint64_t from = start > range->start ? start : range->start, to = end < range->end ? end : range->end;
		munmap((void *)from, to - from);
		range->end = from;
		rest.start = to;
		if (range->start < range->end)
			index++;
		else
			memmove(range, range + 1, (--preload->count - index) * sizeof(*range));
		if (rest.start < rest.end)
			insert_range(preload, index++, rest);
	}
}

uint64_t preload_find(const struct preload *preload, uint64_t address, uint64_t bytes)
{
	size_t index = first_range(preload, address);
	uint64_t at = address;

	for (; index < preload->count && preload->ranges[index].start <= at && at < address + bytes; index++)
		at = preload->ranges[index].end;
	return at - address < bytes ? at - address : bytes;
}

uint64_t preload_gap(const struct preload *preload, uint64_t address, uint64_t bytes)
{
	size_t index = first_range(preload, address);
	uint64_t start = index < preload->count ? preload->ranges[index].start : UINT64_MAX;

	return start <= address ? 0 : start - address < bytes ? start - address : bytes;
}

/* New pages in one call, without a fault for each and without zeros that are overwritten at once. */
static int fill_registered(int userfault_fd, uint64_t address, const char *data, uint64_t bytes)
{
	while (bytes) {
		struct uffdio_copy copy = {.dst = address, .src = (uint64_t)data, .len = bytes};
		uint64_t done = 0;
		int error = ioctl(userfault_fd, UFFDIO_COPY, &copy) ? errno : 0;

		if (!error || copy.copy > 0) {
			done = error ? (uint64_t)copy.copy : bytes;
		} else if (error == EEXIST) {
			memcpy((void *)address, data, PAGE_BYTES);
			done = PAGE_BYTES;
		} else if (error != EAGAIN) {
			return -error;
		}
		address += done;
		data += done;
		bytes -= done;
	}
	return 0;
}

static int fill_range(const struct preload *preload, const struct preload_range *range, uint64_t address,
		      const char *data, uint64_t bytes)
{
	static const char zeros[ZERO_BYTES];
	int error = 0;

	if (!range->is_registered) {
		if (data)
			memcpy((void *)address, data, bytes);
		else
			memset((void *)address, 0, bytes);
		return 0;
	}
	if (data)
		return fill_registered(preload->userfault_fd, address, data, bytes);
	for (uint64_t done = 0, part; done < bytes && !error; done += part) {
		part = bytes - done < ZERO_BYTES ? bytes - done : ZERO_BYTES;
		error = fill_registered(preload->userfault_fd, address + done, zeros, part);
	}
	return error;
}

int preload_fill(const struct preload *preload, uint64_t address, const void *data, uint64_t bytes)
{
	int error = 0;

	for (uint64_t done = 0, part; done < bytes && !error; done += part) {
		size_t index = first_range(preload, address + done);
		const struct preload_range *range = &preload->ranges[index];

		if (index == preload->count || range->start > address + done)
			return -EFAULT;
		part = range->end - (address + done);
		part = part < bytes - done ? part : bytes - done;
		error = fill_range(preload, range, address + done, data ? (const char *)data + done : NULL, part);
	}
	return error;
}

void preload_free(struct preload *preload)
{
	close_fd_pointer(&preload->userfault_fd);
	free(preload->ranges);
	*preload = (struct preload){.userfault_fd = -1};
}

/* ---- for the restore ---- */

int preload_inherit(struct restore *restore, bool inherit)
{
	const struct preload *preload = restore->options->preload;

	for (size_t i = 0; i < preload->count; i++) {
		const struct preload_range *range = &preload->ranges[i];
		if (madvise((void *)range->start, range->end - range->start, inherit ? MADV_DOFORK : MADV_DONTFORK) < 0)
			return fail_errno(&restore->failure, errno, "preload-fork", NULL, NULL,
					  "madvise of received memory");
	}
	return 0;
}

static bool is_adoptable(const VmaEntry *vma)
{
	return (vma->flags & MAP_ANONYMOUS) && (vma->flags & MAP_PRIVATE) && !(vma->flags & MAP_GROWSDOWN) &&
	       (vma->status & VMA_STATUS_ANON_PRIVATE) && !(vma->status & (VMA_STATUS_VDSO | VMA_STATUS_VVAR));
}

static uint32_t preload_flags(const VmaEntry *vma)
{
	return memory_birth_flags(vma) | (vma->madv >> MADV_HUGEPAGE & 1 ? PRELOAD_HUGE : 0);
}

/* What was not received is mapped too, unless criu lies there. */
static bool fills_gaps(struct preload *preload, const VmaEntry *vma)
{
	uint64_t bytes = vma->end - vma->start;

	preload_map(preload, vma->start, vma->end, preload_flags(vma));
	return preload_find(preload, vma->start, bytes) == bytes;
}

static bool has_flags(const struct preload *preload, const VmaEntry *vma, uint32_t flags)
{
	for (size_t i = first_range(preload, vma->start); i < preload->count && preload->ranges[i].start < vma->end;
	     i++)
		if (preload->ranges[i].flags != flags)
			return false;
	return true;
}

/*
 * Memory that grew between two rounds can be two mappings here, whose pages no kernel merges any more, and the
 * program's next mremap(2) of it would fail: it is made anew, as one.
 */
static bool is_one_mapping(const struct mappings *own, size_t *index, const VmaEntry *vma)
{
	while (*index < own->count && own->items[*index].end <= vma->start)
		++*index;
	return *index < own->count && own->items[*index].start <= vma->start && own->items[*index].end >= vma->end;
}

static bool overlaps(const struct preload *preload, const VmaEntry *vma)
{
	size_t index = first_range(preload, vma->start);

	return index < preload->count && preload->ranges[index].start < vma->end;
}

int preload_adopt(struct restore *restore)
{
	const struct restore_task *task = restore->self;
	struct preload *preload = restore->options->preload;
	_cleanup_free_ bool *candidates = xcalloc(task->mm->n_vmas + 1, sizeof(*candidates));
	_cleanup_fd_ int proc_fd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct mappings own = {};
	size_t index = 0;

	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		candidates[i] = overlaps(preload, vma) && is_adoptable(vma) &&
				has_flags(preload, vma, preload_flags(vma)) && fills_gaps(preload, vma);
	}
	int error = proc_fd < 0 ? -errno : mappings_read_short(proc_fd, &own);
	if (error < 0)
		return fail_errno(&restore->failure, error, "restore-maps", NULL, NULL, "cannot read /proc/self/maps");
	for (size_t i = 0; i < task->mm->n_vmas; i++)
		if (candidates[i] && is_one_mapping(&own, &index, task->mm->vmas[i])) {
			task->memory->inherited[i] = true;
			task->memory->placed[i] = task->mm->vmas[i]->start;
		}
	mappings_free(&own);
	return 0;
}
