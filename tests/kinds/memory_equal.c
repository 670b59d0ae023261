/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages of several tasks that hold the same without being shared: the images may hold them once, but every task gets
 * its own back. 20 children write the same into 64 pages, each one something else into some of them, and all of it
 * changes with every check, so that a page that came back shared for writing would show.
 */
#include "harness.h"

#include <sys/mman.h>

#define PAGE 4096UL
#define PAGES 64UL
#define CHILDREN 20

static uint32_t *memory;
static uint32_t round_number;

/* Most pages are alike in all children, every seventh is not, and two pages of one child are alike. */
static uint32_t expected(size_t number, size_t page)
{
	if (page % 7 == number % 7)
		return 0x40000000 + (round_number << 16) + (number << 8) + (page < 14 ? 0 : page);
	return 0x20000000 + (round_number << 16) + page;
}

static void write_pages(size_t number)
{
	for (size_t i = 0; i < PAGES * PAGE / sizeof(*memory); i++)
		memory[i] = expected(number, i * sizeof(*memory) / PAGE);
}

static void check_process(void *argument)
{
	size_t number = *(size_t *)argument;

	if (!round_number) {
		round_number = 1;
		write_pages(number);
	}
	for (size_t i = 0; i < PAGES * PAGE / sizeof(*memory); i++) {
		size_t page = i * sizeof(*memory) / PAGE;
		if (memory[i] != expected(number, page)) {
			CHECK(false, "process %zu: page %zu has 0x%x", number, page, memory[i]);
			return;
		}
	}
	round_number++;
	write_pages(number);
}

int main(void)
{
	static size_t numbers[CHILDREN + 1];

	memory = MUST((uint32_t *)mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t i = 1; i <= CHILDREN; i++) {
		numbers[i] = i;
		harness_start_child(check_process, &numbers[i]);
	}
	check_process(&numbers[0]);
	harness_check_children();
	harness_ready();
	while (harness_wait_check()) {
		check_process(&numbers[0]);
		harness_check_children();
		harness_report();
	}
	return 0;
}
