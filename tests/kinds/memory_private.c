/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private anonymous memory: written, only read (zero page), never touched, cleared again, and of every protection.
 */
#include "harness.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 700UL

static bool page_is(const uint8_t *page, uint64_t value)
{
	const uint64_t *words = (const uint64_t *)page;

	for (size_t i = 0; i < PAGE / sizeof(*words); i++)
		if (words[i] != value)
			return false;
	return true;
}

static void fill(uint8_t *page, uint64_t value)
{
	uint64_t *words = (uint64_t *)page;

	for (size_t i = 0; i < PAGE / sizeof(*words); i++)
		words[i] = value;
}

/* Page i of the pattern: every third is written, every seventh was written and given back, the rest untouched. */
static uint64_t expected(size_t i)
{
	if (i % 7 == 0)
		return 0;
	return i % 3 == 0 ? 0x0102030405060708 * (i + 1) : 0;
}

static uint8_t *new_memory(size_t pages)
{
	return MUST((uint8_t *)mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static size_t resident_pages(uint8_t *memory, size_t pages)
{
	unsigned char vector[PAGES];
	size_t count = 0;

	mincore(memory, pages * PAGE, vector);
	for (size_t i = 0; i < pages; i++)
		count += vector[i] & 1;
	return count;
}

int main(void)
{
	uint8_t *pattern = new_memory(PAGES);
	for (size_t i = 0; i < PAGES; i++)
		if (i % 3 == 0)
			fill(pattern + i * PAGE, 0x0102030405060708 * (i + 1));
	for (size_t i = 0; i < PAGES; i += 7)
		MUST(madvise(pattern + i * PAGE, PAGE, MADV_DONTNEED));
	size_t resident = resident_pages(pattern, PAGES);

	uint8_t *readable = new_memory(3);
	fill(readable + PAGE, 77);
	MUST(mprotect(readable, 3 * PAGE, PROT_READ));
	uint8_t *executable = new_memory(1);
	static const uint8_t code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
	memcpy(executable, code, sizeof(code));
	MUST(mprotect(executable, PAGE, PROT_READ | PROT_EXEC));
	int (*answer)(void) = (int (*)(void))(void *)executable;
	uint8_t *write_only = new_memory(1);
	MUST(mprotect(write_only, PAGE, PROT_WRITE));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(resident_pages(pattern, PAGES) <= resident, "%zu pages, were %zu", resident_pages(pattern, PAGES),
		      resident);
		for (size_t i = 0; i < PAGES; i++)
			if (expected(i) && !page_is(pattern + i * PAGE, expected(i)))
				CHECK(false, "page %zu differs", i);
		CHECK(page_is(readable + PAGE, 77) && page_is(readable, 0));
		CHECK(mprotect(readable, PAGE, PROT_READ) == 0);
		CHECK(answer() == 42);
		write_only[5] = 1;
		harness_report();
	}
	return 0;
}
