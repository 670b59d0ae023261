/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared anonymous memory: one memory in several tasks after the restore, its pieces, holes and protections.
 */
#include "harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 64UL
#define SPARSE_BYTES (64UL << 30)

struct memory {
	volatile uint64_t turn; /* written by the parent, answered by the child */
	volatile uint64_t answer;
};

static struct memory *common;
static char *pieces[2]; /* two pages in a mapping with a gap between */

static void answer(void *argument)
{
	common->answer = common->turn + 1;
	CHECK(!strcmp(pieces[0], "first piece") && !strcmp(pieces[1], "second piece"));
	CHECK(!strcmp(argument, "changed before the fork"));
}

static char *new_memory(size_t size, int flags)
{
	return MUST((char *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, -1, 0));
}

static bool is_named(const void *address, const char *name)
{
	char line[512];
	bool found = false;
	FILE *maps = fopen("/proc/self/maps", "re");

	while (maps && fgets(line, sizeof(line), maps)) {
		unsigned long start;
		if (sscanf(line, "%lx-", &start) == 1 && start == (unsigned long)address)
			found = strstr(line, name) != NULL;
	}
	if (maps)
		fclose(maps);
	return found;
}

static size_t resident(void *memory, size_t pages)
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
	common = (struct memory *)new_memory(PAGE, MAP_ANONYMOUS);
	char *split = new_memory(PAGES * PAGE, MAP_ANONYMOUS);
	pieces[0] = split + 2 * PAGE;
	pieces[1] = split + 40 * PAGE;
	strcpy(pieces[0], "first piece");
	strcpy(pieces[1], "second piece");
	MUST(munmap(split + 10 * PAGE, 20 * PAGE));
	MUST(munmap(split, PAGE));

	char *hidden = new_memory(2 * PAGE, MAP_ANONYMOUS);
	strcpy(hidden + PAGE, "behind PROT_NONE");
	MUST(mprotect(hidden, 2 * PAGE, PROT_NONE));
	char *read_only = new_memory(PAGE, MAP_ANONYMOUS);
	strcpy(read_only, "read only");
	MUST(mprotect(read_only, PAGE, PROT_READ));

	char *sparse = new_memory(SPARSE_BYTES, MAP_ANONYMOUS | MAP_NORESERVE);
	strcpy(sparse + SPARSE_BYTES / 2, "in the middle");
	char *holes = new_memory(PAGES * PAGE, MAP_ANONYMOUS);
	for (size_t i = 0; i < PAGES; i += 5)
		holes[i * PAGE] = 1 + i;
	size_t hole_pages = resident(holes, PAGES);

	int zero_fd = MUST(open("/dev/zero", O_RDWR));
	char *zero = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, zero_fd, 0));
	close(zero_fd);
	strcpy(zero, "made with /dev/zero");
	char *inherited = new_memory(PAGE, MAP_ANONYMOUS);
	strcpy(inherited, "changed before the fork");
	harness_start_child(answer, inherited);
	harness_start_child(answer, inherited);
	/* From here on the children hold it alone. */
	MUST(munmap(inherited, PAGE));

	harness_ready();
	while (harness_wait_check()) {
		common->turn += 2;
		harness_check_children();
		CHECK(common->answer == common->turn + 1, "turn %lu, answer %lu", common->turn, common->answer);
		CHECK(!strcmp(pieces[0], "first piece") && !strcmp(pieces[1], "second piece"));
		CHECK(!mprotect(hidden, 2 * PAGE, PROT_READ) && !strcmp(hidden + PAGE, "behind PROT_NONE"));
		CHECK(!mprotect(hidden, 2 * PAGE, PROT_NONE));
		CHECK(!strcmp(read_only, "read only") && !mprotect(read_only, PAGE, PROT_READ | PROT_WRITE));
		read_only[0] = 'r';
		CHECK(!mprotect(read_only, PAGE, PROT_READ));
		CHECK(!strcmp(sparse + SPARSE_BYTES / 2, "in the middle"));
		CHECK(resident(holes, PAGES) == hole_pages, "%zu pages, were %zu", resident(holes, PAGES), hole_pages);
		for (size_t i = 0; i < PAGES; i += 5)
			CHECK(holes[i * PAGE] == (char)(1 + i), "page %zu", i);
		CHECK(!strcmp(zero, "made with /dev/zero"));
		CHECK(is_named(common, "/dev/zero (deleted)") && !is_named(common, "memfd"));
		harness_report();
	}
	return 0;
}
