/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that may not be touched: PROT_NONE with data below, guard regions (MADV_GUARD_INSTALL) in the middle of a
 * mapping, and mappings of threads' stacks with guard pages.
 */
#include "harness.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static sigjmp_buf after_fault;

static void on_fault(int signal)
{
	siglongjmp(after_fault, signal);
}

static bool faults(const volatile uint8_t *address)
{
	if (sigsetjmp(after_fault, 1))
		return true;
	(void)*address;
	return false;
}

int main(void)
{
	struct sigaction action = {.sa_handler = on_fault};
	uint8_t *memory =
		MUST((uint8_t *)mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	MUST(sigaction(SIGSEGV, &action, NULL));
	memset(memory, 'g', 64 * PAGE);
	MUST(mprotect(memory + 8 * PAGE, 8 * PAGE, PROT_NONE));
	bool guards = madvise(memory + 32 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL) == 0;

	harness_ready();
	while (harness_wait_check()) {
		CHECK(faults(memory + 8 * PAGE) && faults(memory + 15 * PAGE), "PROT_NONE is readable");
		CHECK(mprotect(memory + 8 * PAGE, 8 * PAGE, PROT_READ) == 0);
		for (size_t i = 0; i < 16; i++)
			CHECK(memory[i * PAGE] == 'g' && memory[i * PAGE + PAGE - 1] == 'g', "page %zu is lost", i);
		CHECK(mprotect(memory + 8 * PAGE, 8 * PAGE, PROT_NONE) == 0);
		for (size_t i = 0; guards && i < 3; i++)
			CHECK(faults(memory + (32 + i) * PAGE), "guard page %zu can be touched", i);
		CHECK(!faults(memory + 31 * PAGE) && memory[31 * PAGE] == 'g');
		CHECK(!faults(memory + 35 * PAGE) && memory[35 * PAGE] == 'g');
		harness_report();
	}
	return 0;
}
