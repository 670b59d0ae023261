/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared anonymous memory: between processes, mapped twice with different offsets and protections, with holes, partly
 * unmapped, and only in a child.
 */
#include "harness.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 64UL

static uint8_t *shared;
static uint8_t *second_view; /* pages 32..47 again, read only */

static uint8_t *new_shared(size_t pages)
{
	return MUST((uint8_t *)mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

static bool is_all(const uint8_t *bytes, size_t length, uint8_t value)
{
	for (size_t i = 0; i < length; i++)
		if (bytes[i] != value)
			return false;
	return true;
}

/* The child writes what it was told through page 1, the parent looks. */
static void check_child(void *argument)
{
	uint8_t *only_here = argument;

	CHECK(shared[PAGE] == 'p', "parent wrote %c", shared[PAGE]);
	shared[PAGE + 1] = 'c';
	CHECK(is_all(shared + 5 * PAGE, PAGE, 5));
	CHECK(is_all(only_here, 2 * PAGE, 'o'));
}

/* A mapping that only the child has left. */
static void check_orphaned(void *argument)
{
	static uint8_t *mine;

	if (!mine) {
		mine = new_shared(4);
		memset(mine, 'm', 2 * PAGE);
		MUST(munmap(mine + 3 * PAGE, PAGE));
	}
	CHECK(is_all(mine, 2 * PAGE, 'm') && is_all(mine + 2 * PAGE, PAGE, 0));
}

int main(void)
{
	shared = new_shared(PAGES);
	memset(shared + 5 * PAGE, 5, PAGE);
	memset(shared + 40 * PAGE, 40, PAGE);
	/* mremap with an old size of 0 makes a second view of shared memory. */
	second_view = MUST((uint8_t *)mremap(shared + 32 * PAGE, 0, 16 * PAGE, MREMAP_MAYMOVE));
	MUST(mprotect(second_view, 16 * PAGE, PROT_READ));
	/* A hole in the middle of the view of this process. */
	MUST(munmap(shared + 50 * PAGE, 2 * PAGE));
	uint8_t *for_child = new_shared(2);
	memset(for_child, 'o', 2 * PAGE);
	harness_start_child(check_child, for_child);
	harness_start_child(check_orphaned, NULL);
	shared[PAGE] = 'p';
	harness_check_children();
	MUST(munmap(for_child, 2 * PAGE));
	uint8_t counter = 0;

	harness_ready();
	while (harness_wait_check()) {
		shared[PAGE] = 'p';
		shared[PAGE + 1] = 0;
		harness_check_children();
		CHECK(shared[PAGE + 1] == 'c');
		CHECK(is_all(shared + 5 * PAGE, PAGE, 5) && is_all(shared + 6 * PAGE, PAGE, 0));
		CHECK(is_all(second_view + 8 * PAGE, PAGE, 40));
		shared[33 * PAGE] = ++counter;
		CHECK(second_view[PAGE] == counter, "the second view shows %d, not %d", second_view[PAGE], counter);
		unsigned char vector;
		CHECK(mincore(shared + 50 * PAGE, PAGE, &vector) < 0, "the hole is filled");
		harness_report();
	}
	return 0;
}
