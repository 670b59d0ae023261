/* SPDX-License-Identifier: Apache-2.0 */
/* What processes have asked of their memory as a whole and of memory to come: each child has asked for one thing. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_FUTEX_HASH
#define PR_FUTEX_HASH 78
#define PR_FUTEX_HASH_SET_SLOTS 1
#define PR_FUTEX_HASH_GET_SLOTS 2
#endif

enum { PAGE_BYTES = 4096, MDWE_REFUSE_EXEC_GAIN = 1, MDWE_NO_INHERIT = 2, MANY_SLOTS = 4096 };

static char *map_page(int protection)
{
	return mmap(NULL, PAGE_BYTES, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Whether VmFlags of the mapping with @address has the two letters @flag; -1 = there is no such mapping. */
static int has_flag(const void *address, const char *flag)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[4096];
	bool here = false;
	int result = -1;

	while (file && result < 0 && fgets(line, sizeof(line), file)) {
		unsigned long start, end;
		char rights[5];
		if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) == 3)
			here = start <= (unsigned long)address && (unsigned long)address < end;
		if (here && !strncmp(line, "VmFlags:", 8))
			result = strstr(line + 8, flag) != NULL;
	}
	if (file)
		fclose(file);
	return result;
}

/* ---- no memory that was writable becomes executable ---- */

static void check_mdwe(void *argument)
{
	int wanted = (int)(long)argument;
	char *page = map_page(PROT_READ | PROT_WRITE | PROT_EXEC);

	CHECK(prctl(PR_GET_MDWE, 0, 0, 0, 0) == wanted, "%d", prctl(PR_GET_MDWE, 0, 0, 0, 0));
	CHECK((page == MAP_FAILED && errno == EACCES) == (wanted != 0), "mapped at %p", (void *)page);
	if (page != MAP_FAILED)
		munmap(page, PAGE_BYTES);
}

static void check_mdwe_child(void *argument)
{
	static bool set;

	if (!set && argument)
		CHECK(!prctl(PR_SET_MDWE, argument, 0, 0, 0));
	set = true;
	check_mdwe(argument);
}

/* ---- all memory may be merged ---- */

static void *merged, *not_merged;

static void check_merge(void *argument)
{
	static bool set;

	if (!set) {
		merged = map_page(PROT_READ | PROT_WRITE);
		map_page(PROT_NONE); /* keeps them apart */
		not_merged = map_page(PROT_READ | PROT_WRITE);
		CHECK(!prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
		CHECK(!madvise(not_merged, PAGE_BYTES, MADV_UNMERGEABLE));
	}
	set = true;
	char *page = map_page(PROT_READ | PROT_WRITE);
	CHECK(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1);
	CHECK(has_flag(page, " mg") == 1);
	CHECK(has_flag(merged, " mg") == 1);
	CHECK(has_flag(not_merged, " mg") == 0);
	munmap(page, PAGE_BYTES);
}

static void check_no_merge(void *argument)
{
	CHECK(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 0);
}

/* ---- memory to come is locked ---- */

static void check_locked(void *argument)
{
	static bool set;
	int flags = (int)(long)argument;
	unsigned char there;

	if (!set)
		CHECK(!mlockall(flags));
	set = true;
	char *page = map_page(PROT_READ | PROT_WRITE);
	CHECK(has_flag(page, " lo") == 1);
	CHECK(has_flag(page, " lf") == !!(flags & MCL_ONFAULT));
	CHECK(!mincore(page, PAGE_BYTES, &there) && (there & 1) == !(flags & MCL_ONFAULT), "there: %d", there);
	munmap(page, PAGE_BYTES);
}

static void check_not_locked(void *argument)
{
	char *page = map_page(PROT_READ | PROT_WRITE);

	CHECK(has_flag(page, " lo") == 0);
	munmap(page, PAGE_BYTES);
}

/* One mapping, locked when it is touched, of which one page of three was. */
static void check_lock_on_fault(void *argument)
{
	static char *pages;
	unsigned char there[3];

	if (!pages) {
		pages = mmap(NULL, sizeof(there) * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			     0);
		CHECK(!madvise(pages, sizeof(there) * PAGE_BYTES, MADV_NOHUGEPAGE));
		CHECK(!mlock2(pages, sizeof(there) * PAGE_BYTES, MLOCK_ONFAULT));
		pages[PAGE_BYTES] = 7;
	}
	CHECK(pages[PAGE_BYTES] == 7);
	CHECK(has_flag(pages, " lo") == 1);
	CHECK(has_flag(pages, " lf") == 1);
	CHECK(!mincore(pages, sizeof(there) * PAGE_BYTES, there));
	CHECK(!(there[0] & 1) && (there[1] & 1) && !(there[2] & 1), "%d %d %d", there[0], there[1], there[2]);
}

/* ---- the table of futexes ---- */

static void *wait_for_ever(void *argument)
{
	sem_post(argument);
	for (;;)
		pause();
	return NULL;
}

static void check_futex(void *argument)
{
	static bool set;
	long slots = (long)argument;
	pthread_t thread;
	sem_t runs;

	if (!set) {
		/* A new thread begins with all signals blocked; what is compared is what it comes to. */
		sem_init(&runs, 0, 0);
		CHECK(!pthread_create(&thread, NULL, wait_for_ever, &runs));
		while (sem_wait(&runs) < 0)
			;
		CHECK(!prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, slots, 0));
	}
	set = true;
	CHECK(prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0) == slots, "%d slots",
	      prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0));
}

int main(void)
{
	if (geteuid() != 0)
		harness_skip("needs root");
	if (prctl(PR_GET_MDWE, 0, 0, 0, 0) < 0 || prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) < 0)
		harness_skip("this kernel lacks PR_GET_MDWE or PR_GET_MEMORY_MERGE");
	harness_start_child(check_mdwe_child, (void *)MDWE_REFUSE_EXEC_GAIN);
	harness_start_child(check_mdwe_child, (void *)(MDWE_REFUSE_EXEC_GAIN | MDWE_NO_INHERIT));
	harness_start_child(check_mdwe_child, NULL);
	harness_start_child(check_merge, NULL);
	harness_start_child(check_no_merge, NULL);
	harness_start_child(check_locked, (void *)MCL_FUTURE);
	harness_start_child(check_locked, (void *)(MCL_FUTURE | MCL_ONFAULT));
	harness_start_child(check_locked, (void *)(MCL_FUTURE | MCL_CURRENT));
	harness_start_child(check_not_locked, NULL);
	harness_start_child(check_lock_on_fault, NULL);
	if (prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS, 0) >= 0) {
		harness_start_child(check_futex, (void *)MANY_SLOTS);
		harness_start_child(check_futex, NULL);
	}
	harness_check_children(); /* what they check first they set up first */
	harness_ready();
	while (harness_wait_check()) {
		harness_check_children();
		harness_report();
	}
	return 0;
}
