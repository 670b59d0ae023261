/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tebibyte reserved, a few pages of it used, and a sparse shared mapping: neither dump nor restore may take the time
 * or the room of what is not there.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define GIB (1UL << 30)

static const size_t used[] = {0, 1, 5 * GIB / PAGE, 77 * GIB / PAGE + 3, 512 * GIB / PAGE, 1024 * GIB / PAGE - 1};
#define USED (sizeof(used) / sizeof(used[0]))

static long resident_kb(void)
{
	char line[256];
	long kb = -1;
	FILE *status = fopen("/proc/self/status", "r");

	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmRSS: %ld kB", &kb) == 1)
			break;
	if (status)
		fclose(status);
	return kb;
}

int main(void)
{
	uint8_t *memory = MUST((uint8_t *)mmap(NULL, 1024 * GIB, PROT_READ | PROT_WRITE,
					       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	uint8_t *reserved = MUST((uint8_t *)mmap(NULL, 1024 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	uint8_t *shared = MUST((uint8_t *)mmap(NULL, 4 * GIB, PROT_READ | PROT_WRITE,
					       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));

	for (size_t i = 0; i < USED; i++)
		memset(memory + used[i] * PAGE, 'u' + i, PAGE);
	MUST(mprotect(reserved + 7 * GIB, PAGE, PROT_READ | PROT_WRITE));
	reserved[7 * GIB] = 'r';
	shared[3 * GIB] = 's';
	long before_kb = resident_kb();

	harness_ready();
	while (harness_wait_check()) {
		CHECK(resident_kb() < before_kb + 4096, "%ld kB are resident, were %ld", resident_kb(), before_kb);
		for (size_t i = 0; i < USED; i++)
			CHECK(memory[used[i] * PAGE] == 'u' + i && memory[used[i] * PAGE + PAGE - 1] == 'u' + i,
			      "used page %zu begins with %#x and ends with %#x", i, memory[used[i] * PAGE],
			      memory[used[i] * PAGE + PAGE - 1]);
		CHECK(reserved[7 * GIB] == 'r' && shared[3 * GIB] == 's' && shared[3 * GIB + PAGE] == 0);
		MUST(madvise(shared + 3 * GIB + PAGE, PAGE, MADV_REMOVE));
		harness_report();
	}
	return 0;
}
