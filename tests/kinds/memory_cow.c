/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What fork made shared copy-on-write stays shared: a parent and 20 children over 16 MiB, each with a few pages of its
 * own. The sum of the proportional shares of all must not grow by more than a fifth.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 4096UL
#define CHILDREN 20

static uint8_t *memory;
static pid_t pids[CHILDREN + 1];

static bool page_is(size_t page, uint32_t value)
{
	const uint32_t *words = (const uint32_t *)(const void *)(memory + page * PAGE);

	for (size_t i = 0; i < PAGE / sizeof(*words); i++)
		if (words[i] != value)
			return false;
	return true;
}

static void write_page(size_t page, uint32_t value)
{
	uint32_t *words = (uint32_t *)(void *)(memory + page * PAGE);

	for (size_t i = 0; i < PAGE / sizeof(*words); i++)
		words[i] = value;
}

/* Process @number has page 10 * number + 1 for itself. */
static void check_process(void *argument)
{
	size_t number = *(size_t *)argument;
	static bool written;

	if (!written) {
		write_page(10 * number + 1, 0x80000000 + number);
		written = true;
	}
	for (size_t i = 0; i < PAGES; i++) {
		uint32_t expected = i == 10 * number + 1 ? 0x80000000 + number : i + 1;
		if (!page_is(i, expected)) {
			CHECK(false, "process %zu: page %zu", number, i);
			return;
		}
	}
}

static long share_kb(pid_t pid)
{
	char path[64], line[256];
	long kb = 0;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	FILE *rollup = fopen(path, "r");
	while (rollup && fgets(line, sizeof(line), rollup))
		if (sscanf(line, "Pss: %ld kB", &kb) == 1)
			break;
	if (rollup)
		fclose(rollup);
	return kb;
}

static long total_kb(void)
{
	long sum = 0;

	for (int i = 0; i <= CHILDREN; i++)
		sum += share_kb(pids[i]);
	return sum;
}

int main(void)
{
	static size_t numbers[CHILDREN + 1];

	memory = MUST((uint8_t *)mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (size_t i = 0; i < PAGES; i++)
		write_page(i, i + 1);
	pids[0] = getpid();
	for (size_t i = 1; i <= CHILDREN; i++) {
		numbers[i] = i;
		pids[i] = harness_start_child(check_process, &numbers[i]);
	}
	harness_check_children();
	check_process(&numbers[0]);
	long before_kb = total_kb();

	harness_ready();
	while (harness_wait_check()) {
		CHECK(total_kb() <= before_kb * 6 / 5, "%ld kB together, were %ld", total_kb(), before_kb);
		check_process(&numbers[0]);
		harness_check_children();
		harness_report();
	}
	return 0;
}
