/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many small mappings: neighbours of different protection, single pages with holes between them, lowest and highest
 * addresses, ten thousand in all. What was not mapped must not be mapped.
 */
#include "harness.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 10000UL

static int protection_of(size_t page)
{
	static const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_READ | PROT_EXEC, PROT_NONE};

	return protections[page % 4];
}

/* Every tenth page is a hole, and one long stretch. */
static bool is_hole(size_t page)
{
	return page % 10 == 9 || (page >= 4000 && page < 4500);
}

int main(void)
{
	uint8_t *memory =
		MUST((uint8_t *)mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	uint8_t *lowest = mmap((void *)(16 * PAGE), PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (lowest != MAP_FAILED)
		lowest[0] = 'l';
	for (size_t i = 0; i < PAGES; i++) {
		if (is_hole(i)) {
			MUST(munmap(memory + i * PAGE, PAGE));
			continue;
		}
		if (i % 3 == 0)
			*(size_t *)(void *)(memory + i * PAGE) = i;
		MUST(mprotect(memory + i * PAGE, PAGE, protection_of(i)));
	}
	harness_ready();
	while (harness_wait_check()) {
		unsigned char vector;
		for (size_t i = 0; i < PAGES; i++) {
			bool mapped = mincore(memory + i * PAGE, PAGE, &vector) == 0;
			if (mapped == is_hole(i))
				CHECK(false, "page %zu is %s", i, mapped ? "mapped" : "not mapped");
			else if (mapped && protection_of(i) & PROT_READ)
				CHECK(*(size_t *)(void *)(memory + i * PAGE) == (i % 3 ? 0 : i), "page %zu", i);
		}
		CHECK(lowest == MAP_FAILED || lowest[0] == 'l');
		harness_report();
	}
	return 0;
}
