/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that only siblings share. The parent has written to an eighth of its 8 MiB since it forked 10 children, dropped
 * a part, and then forked another, which shares what the parent has now. Each child has pages of its own in every part,
 * and one has a child itself. All must find their own, and the sum of their proportional shares must not grow by a
 * fifth.
 */
#include "harness.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 2048UL
#define WRITTEN 256UL  /* by the parent, from page 0 on */
#define DROPPED 1536UL /* … and from here to the end dropped */
#define CHILDREN 11

static uint8_t *memory;
static uint32_t written; /* by the parent; what its last child has inherited */
static pid_t pids[CHILDREN + 1];

static uint32_t *words_of(size_t page)
{
	return (uint32_t *)(void *)(memory + page * PAGE);
}

static bool page_is(size_t page, uint32_t value)
{
	for (size_t i = 0; i < PAGE / sizeof(value); i++)
		if (words_of(page)[i] != value)
			return false;
	return true;
}

static void write_page(size_t page, uint32_t value)
{
	for (size_t i = 0; i < PAGE / sizeof(value); i++)
		words_of(page)[i] = value;
}

static bool is_own(size_t number, size_t page)
{
	return number && page % 128 == number;
}

static uint32_t expected(size_t number, size_t page)
{
	if (is_own(number, page))
		return 0x80000000 + number;
	if (written && page < WRITTEN)
		return 0x40000000 + page;
	return written && page >= DROPPED ? 0 : page + 1;
}

static void check_process(void *argument)
{
	static bool own_written;
	size_t number = *(size_t *)argument;

	for (size_t i = 0; i < PAGES && !own_written; i++)
		if (is_own(number, i))
			write_page(i, expected(number, i));
	own_written = true;
	for (size_t i = 0; i < PAGES; i++)
		if (!page_is(i, expected(number, i))) {
			CHECK(false, "process %zu: page %zu has 0x%x", number, i, *words_of(i));
			return;
		}
}

/* Number 10 has a child, which has the same. */
static void check_family(void *argument)
{
	static bool forked;

	check_process(argument);
	if (!forked)
		harness_start_child(check_process, argument);
	forked = true;
	harness_check_children();
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
		if (i == CHILDREN) {
			harness_check_children();
			written = 1;
			for (size_t page = 0; page < WRITTEN; page++)
				write_page(page, expected(0, page));
			MUST_ZERO(madvise(memory + DROPPED * PAGE, (PAGES - DROPPED) * PAGE, MADV_DONTNEED));
		}
		pids[i] = harness_start_child(i == 10 ? check_family : check_process, &numbers[i]);
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
