/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was advised about memory and locked stays so (VmFlags of /proc/self/smaps), and huge pages come back huge.
 */
#include "harness.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define HUGE_PAGE (2UL << 20)

/* One value in kB, or with "VmFlags" whether @flag is among the flags, of the mapping that begins at @address. */
static long mapping_value(const void *address, const char *field, const char *flag)
{
	char line[512];
	unsigned long start, end;
	bool here = false;
	long value = -1;
	FILE *smaps = fopen("/proc/self/smaps", "r");

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (unsigned long)address;
		else if (here && !strncmp(line, field, strlen(field)) && line[strlen(field)] == ':')
			value = flag ? strstr(line, flag) != NULL : strtol(line + strlen(field) + 1, NULL, 10);
	}
	if (smaps)
		fclose(smaps);
	return value;
}

struct advised {
	const char *name, *flag;
	int advice;
	uint8_t *memory;
};

static struct advised advised[] = {
	{.name = "MADV_DONTFORK", .flag = " dc", .advice = MADV_DONTFORK},
	{.name = "MADV_WIPEONFORK", .flag = " wf", .advice = MADV_WIPEONFORK},
	{.name = "MADV_DONTDUMP", .flag = " dd", .advice = MADV_DONTDUMP},
	{.name = "MADV_SEQUENTIAL", .flag = " sr", .advice = MADV_SEQUENTIAL},
	{.name = "MADV_RANDOM", .flag = " rr", .advice = MADV_RANDOM},
	{.name = "MADV_NOHUGEPAGE", .flag = " nh", .advice = MADV_NOHUGEPAGE},
	{.name = "MADV_HUGEPAGE", .flag = " hg", .advice = MADV_HUGEPAGE},
	{.name = "MADV_MERGEABLE", .flag = " mg", .advice = MADV_MERGEABLE},
};
#define ADVISED (sizeof(advised) / sizeof(advised[0]))

/* In its own mapping: a page that cannot be touched on both sides keeps it from merging with its neighbours. */
static uint8_t *new_memory(size_t bytes)
{
	uint8_t *memory = MUST((uint8_t *)mmap(NULL, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	MUST(mprotect(memory + PAGE, bytes, PROT_READ | PROT_WRITE));
	memset(memory + PAGE, 'v', bytes);
	return memory + PAGE;
}

static void check_in_fork(uint8_t *wiped)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(wiped[0] != 0);
	CHECK(waitpid(child, &status, 0) == child && status == 0, "the child sees wiped memory");
}

int main(void)
{
	for (size_t i = 0; i < ADVISED; i++) {
		advised[i].memory = new_memory(4 * PAGE);
		if (madvise(advised[i].memory, 4 * PAGE, advised[i].advice) < 0)
			advised[i].memory = NULL;
	}
	uint8_t *locked = new_memory(4 * PAGE), *locked_on_fault = new_memory(4 * PAGE);
	MUST(mlock(locked, 4 * PAGE));
	MUST(mlock2(locked_on_fault, 4 * PAGE, MLOCK_ONFAULT));

	/* Eight huge pages; the kernel gives them as far as it has some. */
	uint8_t *area = MUST((uint8_t *)mmap(NULL, 9 * HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	uint8_t *huge = (uint8_t *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	MUST(mprotect(huge, 8 * HUGE_PAGE, PROT_READ | PROT_WRITE));
	madvise(huge, 8 * HUGE_PAGE, MADV_HUGEPAGE);
	for (size_t i = 0; i < 8 * HUGE_PAGE; i += 64)
		huge[i] = i / PAGE;
	long huge_kb = mapping_value(huge, "AnonHugePages", NULL);

	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < ADVISED; i++)
			if (advised[i].memory) {
				CHECK(mapping_value(advised[i].memory, "VmFlags", advised[i].flag) == 1, "%s is lost",
				      advised[i].name);
				CHECK(advised[i].memory[3 * PAGE] == 'v');
			}
		CHECK(mapping_value(locked, "VmFlags", " lo") == 1 && mapping_value(locked, "Locked", NULL) == 16,
		      "locked %ld kB", mapping_value(locked, "Locked", NULL));
		CHECK(mapping_value(locked_on_fault, "VmFlags", " lo") == 1);
		check_in_fork(advised[1].memory);
		for (size_t i = 0; i < 8 * HUGE_PAGE; i += 64)
			if (huge[i] != (uint8_t)(i / PAGE)) {
				CHECK(false, "huge memory differs at %zu", i);
				break;
			}
		CHECK(mapping_value(huge, "AnonHugePages", NULL) >= huge_kb, "%ld kB are huge, were %ld",
		      mapping_value(huge, "AnonHugePages", NULL), huge_kb);
		harness_report();
	}
	return 0;
}
