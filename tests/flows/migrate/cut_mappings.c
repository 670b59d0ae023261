/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cut_mappings: memory that is cut into a mapping for each page before any of it is looked at. The kernel says nothing
 * of that to whoever brings the pages, who asks for many at once.
 */
#include "../../kinds/harness.h"

#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 2048 };

int main(void)
{
	uint8_t *memory =
		MUST((uint8_t *)mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	for (size_t i = 0; i < PAGES; i++)
		memory[i * PAGE] = 1 + i % 255;
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 1; i < PAGES; i += 2)
			MUST(mprotect(memory + i * PAGE, PAGE, PROT_READ));
		for (size_t i = 0; i < PAGES; i++)
			CHECK(memory[i * PAGE] == 1 + i % 255, "page %zu begins with %d", i, memory[i * PAGE]);
		MUST(mprotect(memory, PAGES * PAGE, PROT_READ | PROT_WRITE));
		harness_report();
	}
	return 0;
}
