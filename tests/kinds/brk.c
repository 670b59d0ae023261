/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The heap: the program break is where it was, grows and shrinks, also when it ends inside a page.
 */
#include "harness.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL

static uintptr_t current_break(void)
{
	return syscall(SYS_brk, 0);
}

static bool set_break(uintptr_t address)
{
	return (uintptr_t)syscall(SYS_brk, address) == address;
}

int main(void)
{
	/* The C library is told nothing: keep to memory above what it has. */
	uintptr_t start = (current_break() + 16 * PAGE) & ~(PAGE - 1), end = start + 40 * PAGE + 123;

	if (!set_break(end))
		harness_skip("the heap cannot grow");
	memset((void *)start, 'h', end - start);
	harness_ready();
	while (harness_wait_check()) {
		CHECK(current_break() == end, "break %lx, was %lx", current_break(), end);
		for (uintptr_t i = start; i < end; i += PAGE)
			CHECK(*(char *)i == 'h', "heap page %lu", (i - start) / PAGE);
		CHECK(set_break(end + 100 * PAGE));
		CHECK(*(char *)(end + 50 * PAGE) == 0);
		*(char *)(end + 50 * PAGE) = 1;
		CHECK(set_break(end));
		harness_report();
	}
	return 0;
}
