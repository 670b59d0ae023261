/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may have changed since a scan, asked quickly: it must say of every page what the slow question says, whatever
 * was done to the memory in between. The memory is this process's own.
 */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "kinds/mem/page_regions.h"

enum { PAGE_BYTES = 4096, HUGE_BYTES = 2 << 20, TABLES = 24, MEMORY_BYTES = TABLES * HUGE_BYTES, ROUNDS = 150 };
#define WP_UNPOPULATED (1 << 13)
#define WP_ASYNC (1 << 15)
#define EXISTING (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)

struct world {
	char *memory;
	int userfault_fd, pagemap_fd;
	unsigned seed;
};

static void register_memory(struct world *world, char *start, size_t bytes)
{
	struct uffdio_register range = {.range = {(uint64_t)start, bytes}, .mode = UFFDIO_REGISTER_MODE_WP};

	assert_int_equal(ioctl(world->userfault_fd, UFFDIO_REGISTER, &range), 0);
}

static int set_up(void **state)
{
	struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC | WP_UNPOPULATED};
	struct world *world = xcalloc(1, sizeof(*world));
	char *area = mmap(NULL, MEMORY_BYTES + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(area, MAP_FAILED);
	world->memory = (char *)(((uint64_t)area + HUGE_BYTES - 1) & ~(uint64_t)(HUGE_BYTES - 1));
	world->userfault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
	world->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	world->seed = 1;
	*state = world;
	if (world->userfault_fd < 0 || ioctl(world->userfault_fd, UFFDIO_API, &api) < 0)
		skip(); /* a kernel that cannot track writes */
	register_memory(world, world->memory, MEMORY_BYTES);
	return 0;
}

static int tear_down(void **state)
{
	struct world *world = *state;

	munmap(world->memory, MEMORY_BYTES);
	close(world->userfault_fd);
	close(world->pagemap_fd);
	free(world);
	return 0;
}

static unsigned pick(struct world *world, unsigned below)
{
	return (unsigned)rand_r(&world->seed) % below;
}

/* A range of pages, or of whole page tables. */
static char *pick_range(struct world *world, bool tables, size_t *ret_bytes)
{
	size_t unit = tables ? HUGE_BYTES : PAGE_BYTES, units = MEMORY_BYTES / unit;
	size_t first = pick(world, units), count = 1 + pick(world, tables ? 3 : 300);

	*ret_bytes = (count < units - first ? count : units - first) * unit;
	return world->memory + first * unit;
}

static void change(struct world *world)
{
	size_t bytes;
	unsigned what = pick(world, 8);
	char *start = pick_range(world, what >= 4, &bytes);

	switch (what) {
	case 0:
	case 4:
		memset(start, (int)pick(world, 256), bytes);
		break;
	case 1:
		for (size_t at = 0; at < bytes; at += PAGE_BYTES * (1 + pick(world, 100)))
			start[at]++;
		break;
	case 2:
	case 5:
		madvise(start, bytes, MADV_DONTNEED);
		break;
	case 3: /* reading maps the page of zeros */
		for (size_t at = 0; at < bytes; at += PAGE_BYTES)
			(void)*(volatile char *)(start + at);
		break;
	case 6:
		madvise(start, bytes, MADV_DONTNEED);
		start[bytes / 2]++;
		break;
	case 7:
		madvise(start, bytes, pick(world, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		break;
	}
}

static struct pm_scan_arg question(const struct world *world)
{
	return (struct pm_scan_arg){
		.start = (uint64_t)world->memory,
		.end = (uint64_t)world->memory + MEMORY_BYTES,
		.category_inverted = PAGE_IS_PFNZERO,
		.category_mask = PAGE_IS_PFNZERO,
		.category_anyof_mask = EXISTING,
		.return_mask = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
	};
}

static void arm(const struct world *world, struct region_list *armed)
{
	struct pm_scan_arg scan = question(world);

	scan.flags = PM_SCAN_WP_MATCHING;
	armed->count = 0;
	assert_int_equal(page_regions_scan(world->pagemap_fd, &scan, armed), 0);
}

/* One byte for each page: what is said of it. */
static unsigned char *by_page(const struct world *world, const struct region_list *list)
{
	unsigned char *pages = xcalloc(MEMORY_BYTES / PAGE_BYTES, 1);

	for (size_t i = 0; i < list->count; i++)
		for (uint64_t at = list->items[i].start; at < list->items[i].end; at += PAGE_BYTES)
			pages[(at - (uint64_t)world->memory) / PAGE_BYTES] =
				(unsigned char)(0x80 | list->items[i].categories);
	return pages;
}

static void compare(const struct world *world, const struct region_list *slow, const struct region_list *quick)
{
	_cleanup_free_ unsigned char *expected = by_page(world, slow), *found = by_page(world, quick);

	assert_memory_equal(found, expected, MEMORY_BYTES / PAGE_BYTES);
}

static void test_same_as_slow(void **state)
{
	struct world *world = *state;
	const struct pm_scan_arg scan = question(world);
	struct region_list armed = {}, slow = {}, quick = {};

	for (int round = 0; round < ROUNDS; round++) {
		for (unsigned i = pick(world, 12); i > 0; i--)
			change(world);
		arm(world, &armed);
		for (unsigned i = pick(world, 6); i > 0; i--)
			change(world);
		slow.count = quick.count = 0;
		assert_int_equal(page_regions_scan(world->pagemap_fd, &scan, &slow), 0);
		assert_int_equal(page_regions_scan_changes(world->pagemap_fd, &scan, true, &armed, &quick), 0);
		compare(world, &slow, &quick);
	}
	free(armed.items);
	free(slow.items);
	free(quick.items);
}

/* A huge page has no page table, and the kernel frees that of what is dropped: nothing of it may count as there. */
static void test_gone_with_its_table(void **state)
{
	struct world *world = *state;
	const struct pm_scan_arg scan = question(world);
	struct region_list armed = {}, quick = {};

	madvise(world->memory, MEMORY_BYTES, MADV_HUGEPAGE);
	memset(world->memory, 1, MEMORY_BYTES);
	arm(world, &armed);
	madvise(world->memory + HUGE_BYTES, 4 * HUGE_BYTES, MADV_DONTNEED);
	assert_int_equal(page_regions_scan_changes(world->pagemap_fd, &scan, true, &armed, &quick), 0);
	assert_true(quick.count >= 2);
	assert_int_equal(quick.items[0].end, (uint64_t)world->memory + HUGE_BYTES);
	assert_int_equal(quick.items[1].start, (uint64_t)world->memory + 5 * HUGE_BYTES);
	free(armed.items);
	free(quick.items);
}

/* Marks of memory that is not registered mean nothing. */
static void test_not_tracked(void **state)
{
	struct world *world = *state;
	const struct pm_scan_arg scan = question(world);
	struct region_list armed = {}, quick = {};
	char *other = world->memory + 3 * HUGE_BYTES;

	memset(world->memory, 1, MEMORY_BYTES);
	arm(world, &armed);
	assert_ptr_not_equal(
		mmap(other, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		MAP_FAILED);
	assert_int_equal(page_regions_scan_changes(world->pagemap_fd, &scan, true, &armed, &quick), -EPERM);
	assert_int_equal(quick.count, 0);
	free(armed.items);
	free(quick.items);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_same_as_slow, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_gone_with_its_table, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_not_tracked, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
