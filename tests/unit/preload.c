/* SPDX-License-Identifier: Apache-2.0 */
/* Received pages in mappings that wait for their program: new ones, ones that are there, zeros, several mappings. */
#include "unit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "restore/preload.h"

enum { PAGE_BYTES = 4096, PAGES = 64, FLAGS = MAP_PRIVATE | MAP_ANONYMOUS };

struct world {
	struct preload preload;
	uint64_t start; /* of two mappings in a row */
	char data[PAGES * PAGE_BYTES];
};

/* Two mappings, the first of 24 pages. */
static int set_up(void **state)
{
	struct world *world = xcalloc(1, sizeof(*world));
	char *area = mmap(NULL, PAGES * PAGE_BYTES, PROT_NONE, FLAGS, -1, 0);

	assert_ptr_not_equal(area, MAP_FAILED);
	munmap(area, PAGES * PAGE_BYTES);
	world->start = (uint64_t)area;
	preload_begin(&world->preload);
	assert_int_equal(preload_map(&world->preload, world->start, world->start + 24 * PAGE_BYTES, FLAGS), 0);
	assert_int_equal(preload_map(&world->preload, world->start + 24 * PAGE_BYTES, world->start + PAGES * PAGE_BYTES,
				     FLAGS | MAP_NORESERVE),
			 0);
	for (size_t i = 0; i < sizeof(world->data); i++)
		world->data[i] = (char)(i / 7 + i / PAGE_BYTES + 1);
	*state = world;
	return 0;
}

static int tear_down(void **state)
{
	struct world *world = *state;

	preload_unmap(&world->preload, 0, UINT64_MAX);
	preload_free(&world->preload);
	free(world);
	return 0;
}

static void fill(struct world *world, size_t first, size_t pages, const char *data)
{
	assert_int_equal(preload_fill(&world->preload, world->start + first * PAGE_BYTES, data, pages * PAGE_BYTES), 0);
}

static void check(struct world *world, size_t first, size_t pages, const char *data)
{
	static const char zeros[PAGES * PAGE_BYTES];

	preload_settle(&world->preload);
	assert_memory_equal((void *)(world->start + first * PAGE_BYTES), data ?: zeros, pages * PAGE_BYTES);
}

static void test_new(void **state)
{
	struct world *world = *state;

	fill(world, 0, PAGES, world->data);
	check(world, 0, PAGES, world->data);
}

/* Some pages are there, others are not; the range begins and ends inside a mapping. */
static void test_again(void **state)
{
	struct world *world = *state;

	fill(world, 10, 5, world->data);
	fill(world, 20, 10, world->data);
	fill(world, 5, 50, world->data + PAGE_BYTES);
	check(world, 5, 50, world->data + PAGE_BYTES);
	check(world, 0, 5, NULL);
	check(world, 55, PAGES - 55, NULL);
}

static void test_zeros(void **state)
{
	struct world *world = *state;
	unsigned char present[PAGES];

	fill(world, 30, 4, world->data);
	fill(world, 0, 40, NULL);
	assert_int_equal(mincore((void *)world->start, PAGES * PAGE_BYTES, present), 0);
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(present[i] & 1, i < 40);
	check(world, 0, PAGES, NULL);
}

static void test_after_dropping(void **state)
{
	struct world *world = *state;

	fill(world, 0, PAGES, world->data);
	assert_int_equal(madvise((void *)(world->start + 8 * PAGE_BYTES), 40 * PAGE_BYTES, MADV_DONTNEED), 0);
	fill(world, 16, 8, world->data);
	check(world, 0, 8, world->data);
	check(world, 8, 8, NULL);
	check(world, 16, 8, world->data);
	check(world, 24, 24, NULL);
}

/* A host that gives huge pages unasked, or a kernel without userfaultfd. */
static void test_by_touching(void **state)
{
	struct world *world = *state;

	preload_settle(&world->preload);
	fill(world, 3, 50, world->data);
	fill(world, 6, 2, NULL);
	check(world, 3, 3, world->data);
	check(world, 6, 2, NULL);
	check(world, 8, 45, world->data + 5 * PAGE_BYTES);
}

static void test_not_mapped(void **state)
{
	struct world *world = *state;

	preload_unmap(&world->preload, world->start + 20 * PAGE_BYTES, world->start + 30 * PAGE_BYTES);
	assert_int_equal(preload_fill(&world->preload, world->start + 18 * PAGE_BYTES, world->data, 4 * PAGE_BYTES),
			 -EFAULT);
	fill(world, 30, 10, world->data);
	check(world, 30, 10, world->data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_new, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_again, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_zeros, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_after_dropping, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_by_touching, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_not_mapped, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
