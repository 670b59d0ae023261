/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stacks that grow by themselves, the main one and a MAP_GROWSDOWN one, still do so after a restore, and what was on
 * them is there.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL

/* Uses @pages of stack below the caller. */
static __attribute__((noinline)) uint64_t use_stack(int pages)
{
	volatile uint8_t buffer[PAGE];

	memset((void *)buffer, pages, sizeof(buffer));
	return pages > 1 ? use_stack(pages - 1) + buffer[17] : buffer[18];
}

static uint64_t expected_sum(int pages)
{
	uint64_t sum = 0;

	for (int i = 1; i <= pages; i++)
		sum += i & 0xff;
	return sum;
}

int main(void)
{
	volatile uint8_t on_stack[3 * PAGE];
	int pages = 100;

	for (size_t i = 0; i < sizeof(on_stack); i++)
		on_stack[i] = i * 7;
	/* Room below it, so that nothing else is mapped there. */
	uint8_t *room = MUST((uint8_t *)mmap(NULL, 4096 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(munmap(room, 4096 * PAGE));
	volatile uint8_t *growing =
		MUST((uint8_t *)mmap(room + 4000 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
	memset((void *)growing, 'd', 16 * PAGE);
	int grown = 0;

	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < sizeof(on_stack); i++)
			if (on_stack[i] != (uint8_t)(i * 7)) {
				CHECK(false, "the stack differs at %zu", i);
				break;
			}
		CHECK(use_stack(pages) == expected_sum(pages), "%d pages of stack", pages);
		pages += 100;
		/* Each check grows it by a few more pages, and what earlier ones wrote is there. */
		for (int i = 1; i <= grown; i++)
			CHECK(growing[-(long)(i * PAGE)] == (uint8_t)i, "grown page %d", i);
		for (int i = 0; i < 3; i++) {
			grown++;
			growing[-(long)(grown * PAGE)] = grown;
		}
		CHECK(growing[15 * PAGE] == 'd');
		harness_report();
	}
	return 0;
}
