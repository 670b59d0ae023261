/* SPDX-License-Identifier: Apache-2.0 */
/* Chains of images: pages are found at whatever level they lie, and what refers to nothing or in a circle is refused.
 */
#include "unit.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "directory.h"
#include "base/fd.h"
#include "image/page_chain.h"

#include "pagemap.pb-c.h"

enum { PAGE = 4096, LEVELS = 3 };

struct world {
	char directory[DIRECTORY_BYTES];
	int dirfds[LEVELS]; /* [0] is the newest */
	struct failure failure;
};

static int set_up(void **state)
{
	struct world *world = xcalloc(1, sizeof(*world));
	char path[64], target[32];

	directory_make(world->directory);
	for (int i = 0; i < LEVELS; i++) {
		snprintf(path, sizeof(path), "%s/%d", world->directory, i);
		assert_int_equal(mkdir(path, 0700), 0);
		world->dirfds[i] = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		snprintf(target, sizeof(target), "../%d", i + 1);
		if (i + 1 < LEVELS)
			assert_int_equal(symlinkat(target, world->dirfds[i], "parent"), 0);
	}
	*state = world;
	return 0;
}

static int tear_down(void **state)
{
	struct world *world = *state;

	for (int i = 0; i < LEVELS; i++)
		close(world->dirfds[i]);
	directory_remove(world->directory);
	free(world);
	return 0;
}

/* Entries are {address in pages, pages, flags, source pid, source page}, ended by pages 0. */
struct row {
	uint64_t page, pages;
	uint32_t flags, source_pid;
	uint64_t source_page;
};

static void write_level(struct world *world, int level, uint64_t pid, const struct row *rows)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;
	struct image *image;
	uint64_t present = 0;
	char name[64];

	assert_int_equal(image_create(world->dirfds[level], &world->failure, IMAGE_PAGEMAP, pid, &image), 0);
	head.pages_id = pid;
	image_write(image, &head.base);
	for (; rows->pages; rows++) {
		PagemapEntry entry = PAGEMAP_ENTRY__INIT;
		entry.vaddr = rows->page * PAGE;
		entry.has_nr_pages = entry.has_flags = true;
		entry.nr_pages = rows->pages;
		entry.flags = rows->flags;
		entry.has_source_pid = entry.has_source_vaddr = rows->source_pid;
		entry.source_pid = rows->source_pid;
		entry.source_vaddr = rows->source_page * PAGE;
		present += rows->flags & PAGEMAP_PRESENT ? rows->pages : 0;
		image_write(image, &entry.base);
	}
	assert_int_equal(image_close(&image), 0);
	image_name(IMAGE_PAGES, pid, name, sizeof(name));
	_cleanup_fd_ int fd = openat(world->dirfds[level], name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, present * PAGE), 0);
}

static int read_chain(struct world *world, uint64_t pid, struct page_chain **ret_chain,
		      const struct page_places **ret_places)
{
	failure_clear(&world->failure);
	*ret_chain = page_chain_new(world->dirfds[0], &world->failure);
	return page_chain_read(*ret_chain, IMAGE_PAGEMAP, pid, UINT64_MAX, ret_places);
}

static void refused(struct world *world, const char *cause)
{
	const struct page_places *places;
	struct page_chain *chain;

	assert_true(read_chain(world, 7, &chain, &places) < 0);
	page_chain_free(chain);
	if (!strstr(world->failure.cause, cause))
		print_error("\"%s\" does not say \"%s\"\n", world->failure.cause, cause);
	assert_non_null(strstr(world->failure.cause, cause));
}

static void test_levels(void **state)
{
	struct world *world = *state;
	const struct page_places *places;
	struct page_chain *chain;

	write_level(world, 2, 7, (struct row[]){{10, 10, PAGEMAP_PRESENT}, {}});
	write_level(
		world, 1, 7,
		(struct row[]){{10, 4, PAGEMAP_IN_PARENT}, {14, 2, PAGEMAP_PRESENT}, {16, 4, PAGEMAP_IN_PARENT}, {}});
	write_level(world, 0, 7, (struct row[]){{12, 6, PAGEMAP_IN_PARENT}, {30, 1, PAGEMAP_PRESENT}, {}});
	assert_int_equal(read_chain(world, 7, &chain, &places), 0);
	assert_int_equal(places->count, 4);
	assert_int_equal(places->items[0].address, 12 * PAGE);
	assert_int_equal(places->items[0].pages, 2);
	assert_int_equal(places->items[0].first_page, 2);
	assert_int_equal(places->items[1].address, 14 * PAGE);
	assert_int_equal(places->items[1].first_page, 0);
	assert_int_equal(places->items[2].first_page, 6);
	assert_int_equal(places->items[2].source, places->items[0].source);
	assert_int_not_equal(places->items[1].source, places->items[0].source);
	assert_int_equal(places->items[3].address, 30 * PAGE);
	page_chain_free(chain);
}

static void test_refused(void **state)
{
	struct world *world = *state;

	write_level(world, 0, 7, (struct row[]){{12, 6, PAGEMAP_IN_PARENT}, {}});
	refused(world, "do not have this process");
	write_level(world, 1, 7, (struct row[]){{12, 5, PAGEMAP_PRESENT}, {}});
	refused(world, "do not have all of it");
	write_level(world, 1, 7, (struct row[]){{12, 2, PAGEMAP_PRESENT}, {15, 5, PAGEMAP_PRESENT}, {}});
	refused(world, "do not have all of it");
	write_level(world, 1, 7, (struct row[]){{12, 6, PAGEMAP_IN_PARENT}, {}});
	write_level(world, 2, 7, (struct row[]){{12, 6, PAGEMAP_IN_PARENT}, {}});
	refused(world, "has no such link");
	assert_int_equal(symlinkat("../0", world->dirfds[2], "parent"), 0);
	refused(world, "their own parents");
	unlinkat(world->dirfds[2], "parent", 0);
	assert_int_equal(symlinkat("/nowhere", world->dirfds[2], "parent"), 0);
	refused(world, "leads to no directory");
	write_level(world, 0, 7, (struct row[]){{12, 6, PAGEMAP_PRESENT}, {11, 1, PAGEMAP_PRESENT}, {}});
	refused(world, "out of order or range");
	write_level(world, 0, 7, (struct row[]){{12, UINT64_MAX / PAGE, PAGEMAP_IN_PARENT}, {}});
	refused(world, "out of order or range");
	write_level(world, 0, 7, (struct row[]){{12, 1, PAGEMAP_LAZY}, {}});
	refused(world, "page server");
}

static void test_circle(void **state)
{
	struct world *world = *state;

	write_level(world, 0, 7, (struct row[]){{12, 1, PAGEMAP_SHARED, 8, 12}, {}});
	refused(world, "that the images do not have");
	write_level(world, 0, 8, (struct row[]){{12, 1, PAGEMAP_SHARED, 7, 12}, {}});
	refused(world, "in a circle");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_levels, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_circle, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
