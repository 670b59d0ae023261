/* SPDX-License-Identifier: Apache-2.0 */
/*
 * every_byte [MIB [PAUSE_US [wild]]]: memory of every sort that keeps changing, and of which every byte is known at any
 * moment.
 *
 * A page's content follows from its region, its number and its version. Threads own pages; each takes one by a seeded
 * generator, looks whether all of it is what the version says, and writes the next version. How many pages a thread has
 * written is kept elsewhere and must be the sum of the versions, so that a page that came back old together with its
 * version is found too. One more thread makes, moves, cuts and drops mappings; `wild` ones
 * grow too, and a thread forks children that look at their copy and change it. A check stops all of them between two
 * steps, looks at every byte, and lets them go on.
 */
#include "../../kinds/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, WRITERS = 4, MAX_PAGES = 1 << 18, MAX_MAPPINGS = 32 };

struct region {
	const char *name;
	uint64_t *memory;
	size_t first_page, pages; /* in the tables of all pages */
};

struct writer {
	unsigned number;
	uint64_t random;
	uint64_t written; /* pages, by this thread */
};

/* What the mapper has made; its pages are version 0 of a region of their own. */
struct made {
	uint64_t *memory;
	size_t pages;
	uint64_t name;
	bool shared;
};

static struct region regions[16];
static size_t region_count, page_count;
static uint32_t *versions;
static struct writer writers[WRITERS];
static struct made made[MAX_MAPPINGS];
static unsigned pause_us = 100;
static bool wild;
static uint64_t *forked_memory;
enum { FORKED_PAGES = 256 };

/* ---- standing still for a check ---- */

static pthread_rwlock_t steps = PTHREAD_RWLOCK_INITIALIZER;
static atomic_ullong steps_done;
static atomic_bool checking;

static void step_begin(void)
{
	/* A lock that is always taken for reading would starve the check. */
	while (atomic_load(&checking))
		usleep(100);
	pthread_rwlock_rdlock(&steps);
}

static void step_end(void)
{
	pthread_rwlock_unlock(&steps);
	atomic_fetch_add(&steps_done, 1);
	if (pause_us)
		usleep(pause_us);
}

/* ---- what a page holds ---- */

static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 31) * 0x9e3779b97f4a7c15ULL;
	value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9ULL;
	return value ^ value >> 32;
}

static uint64_t next_random(uint64_t *random)
{
	*random += 0x9e3779b97f4a7c15ULL;
	return mix(*random);
}

/* One version in eight is a page of zeros, one in eight is easily compressed. */
static uint64_t word_of(uint64_t base, size_t i)
{
	switch (base & 7) {
	case 0:
		return 0;
	case 1:
		return base;
	default:
		return mix(base + i);
	}
}

static void write_page(uint64_t *page, uint64_t base)
{
	for (size_t i = 0; i < WORDS; i++)
		page[i] = word_of(base, i);
}

static bool is_page(const uint64_t *page, uint64_t base)
{
	uint64_t wrong = 0;

	for (size_t i = 0; i < WORDS; i++)
		wrong |= page[i] ^ word_of(base, i);
	return !wrong;
}

static uint64_t base_of(size_t page)
{
	return mix((uint64_t)page << 32 | versions[page]);
}

static const struct region *region_of(size_t page)
{
	for (size_t i = 0; i < region_count; i++)
		if (page - regions[i].first_page < regions[i].pages)
			return &regions[i];
	return NULL;
}

static void check_page(size_t page, const char *when)
{
	const struct region *region = region_of(page);
	const uint64_t *memory = region->memory + (page - region->first_page) * WORDS;

	CHECK(is_page(memory, base_of(page)), "%s: %s: page %zu of %zu at %p is not version %u: %016lx %016lx", when,
	      region->name, page - region->first_page, region->pages, (const void *)memory, versions[page], memory[0],
	      memory[WORDS - 1]);
}

static void add_region(const char *name, void *memory, size_t pages)
{
	regions[region_count++] = (struct region){name, memory, page_count, pages};
	for (size_t i = 0; i < pages; i++)
		write_page((uint64_t *)memory + i * WORDS, base_of(page_count + i));
	page_count += pages;
}

/* ---- threads ---- */

static void *writer_main(void *argument)
{
	struct writer *writer = argument;

	for (;;) {
		step_begin();
		size_t page = next_random(&writer->random) % (page_count / WRITERS) * WRITERS + writer->number;
		const struct region *region = region_of(page);
		check_page(page, "before it is written again");
		versions[page]++;
		writer->written++;
		write_page(region->memory + (page - region->first_page) * WORDS, base_of(page));
		step_end();
	}
	return NULL;
}

static void check_made(const struct made *mapping, const char *when)
{
	for (size_t i = 0; i < mapping->pages; i++)
		CHECK(is_page(mapping->memory + i * WORDS, mix(mapping->name + i)),
		      "%s: mapping %lx of %zu pages at %p: page %zu is wrong: %016lx", when, mapping->name,
		      mapping->pages, (void *)mapping->memory, i, mapping->memory[i * WORDS]);
}

static void write_made(struct made *mapping, size_t from)
{
	for (size_t i = from; i < mapping->pages; i++)
		write_page(mapping->memory + i * WORDS, mix(mapping->name + i));
}

static void make_mapping(struct made *mapping, uint64_t random)
{
	mapping->pages = random % 64 + 1;
	mapping->name = random & ~0xffffUL;
	mapping->shared = random >> 20 & 1;
	mapping->memory = MUST((uint64_t *)mmap(NULL, mapping->pages * PAGE, PROT_READ | PROT_WRITE,
						(mapping->shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0));
	write_made(mapping, 0);
}

/* Private mappings only: shared memory does not grow with its mapping. */
static void grow_mapping(struct made *mapping, uint64_t random)
{
	size_t pages = mapping->pages + random % 16;

	if (mapping->shared || !wild)
		return;
	mapping->memory =
		MUST((uint64_t *)mremap(mapping->memory, mapping->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE));
	size_t before = mapping->pages;
	mapping->pages = pages;
	write_made(mapping, before);
}

static void move_mapping(struct made *mapping)
{
	size_t bytes = mapping->pages * PAGE;
	void *place = MUST(mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));

	mapping->memory = MUST((uint64_t *)mremap(mapping->memory, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, place));
}

static void *mapper_main(void *argument)
{
	uint64_t random = 77;

	for (;;) {
		step_begin();
		uint64_t value = next_random(&random);
		struct made *mapping = &made[value >> 40 & (MAX_MAPPINGS - 1)];
		check_made(mapping, "before it is changed");
		if (!mapping->memory) {
			make_mapping(mapping, value);
		} else if (value % 4 == 0) {
			MUST(munmap(mapping->memory, mapping->pages * PAGE));
			*mapping = (struct made){};
		} else if (value % 4 == 1 && mapping->pages > 1) {
			mapping->pages--;
			MUST(munmap(mapping->memory + mapping->pages * WORDS, PAGE));
		} else if (value % 4 == 2) {
			grow_mapping(mapping, value >> 8);
		} else {
			move_mapping(mapping);
		}
		step_end();
		usleep(500);
	}
	return NULL;
}

/* A child has the memory as it was, and changes that are its own. */
static int child_main(uint64_t generation)
{
	for (int round = 0; round < 20; round++) {
		for (size_t i = 0; i < FORKED_PAGES; i++) {
			bool mine = round && i % 4 == 0;
			if (!is_page(forked_memory + i * WORDS, mix((generation + (mine ? round : 0)) << 20 | i)))
				return 1;
		}
		for (size_t i = 0; i < FORKED_PAGES; i += 4)
			write_page(forked_memory + i * WORDS, mix((generation + round + 1) << 20 | i));
		usleep(5000);
	}
	return 0;
}

static void *forker_main(void *argument)
{
	for (uint64_t generation = 0;; generation++) {
		int status = 0;
		step_begin();
		for (size_t i = 0; i < FORKED_PAGES; i++)
			write_page(forked_memory + i * WORDS, mix(generation << 20 | i));
		step_end();
		pid_t child = MUST(fork());
		if (!child)
			_exit(child_main(generation));
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		CHECK(!status, "child of generation %lu: status %x", generation, status);
		for (size_t i = 0; i < FORKED_PAGES; i++)
			CHECK(is_page(forked_memory + i * WORDS, mix(generation << 20 | i)),
			      "memory that was shared with a child: page %zu of generation %lu", i, generation);
	}
	return NULL;
}

/* ---- a check ---- */

static void check_all(void)
{
	uint64_t before = atomic_load(&steps_done), sums[WRITERS] = {};

	/* They live, and have come further. */
	while (atomic_load(&steps_done) < before + 50)
		usleep(200);
	atomic_store(&checking, true);
	pthread_rwlock_wrlock(&steps);
	for (size_t page = 0; page < page_count; page++) {
		check_page(page, "check");
		sums[page % WRITERS] += versions[page];
	}
	for (size_t i = 0; i < WRITERS; i++)
		CHECK(sums[i] == writers[i].written, "writer %zu: the versions add up to %lu, it has written %lu", i,
		      sums[i], writers[i].written);
	for (size_t i = 0; i < MAX_MAPPINGS; i++)
		check_made(&made[i], "check");
	atomic_store(&checking, false);
	pthread_rwlock_unlock(&steps);
}

/* ---- regions ---- */

static void *map(size_t pages, int flags, int fd)
{
	return MUST(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0));
}

/* All of it is written, so that a private mapping of it shows only pages of its own. */
static void *map_file(size_t pages)
{
	int fd = MUST(open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600));
	static const char zeros[PAGE];

	for (size_t i = 0; i < pages; i++)
		MUST(write(fd, zeros, PAGE));
	void *memory = map(pages, MAP_PRIVATE, fd);
	MUST(close(fd));
	return memory;
}

static void *map_memfd(size_t pages)
{
	int fd = MUST(memfd_create("every_byte", 0));

	MUST(ftruncate(fd, pages * PAGE));
	return map(pages, MAP_SHARED, fd);
}

static void *map_huge(size_t pages)
{
	const size_t huge = 2 << 20;
	uintptr_t memory = (uintptr_t)map(pages + huge / PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	memory = (memory + huge - 1) & ~(huge - 1);
	MUST(madvise((void *)memory, pages * PAGE, MADV_HUGEPAGE));
	return (void *)memory;
}

static void start(void *(*function)(void *), void *argument)
{
	pthread_t thread;

	MUST_ZERO(pthread_create(&thread, NULL, function, argument));
}

static void *on_page(char *memory)
{
	return (void *)(((uintptr_t)memory + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
}

int main(int argc, char **argv)
{
	size_t pages = (argc > 1 ? strtoul(argv[1], NULL, 10) : 16) * (1 << 20) / PAGE / 8 * 4;
	char stack[65 * PAGE];

	pause_us = argc > 2 ? strtoul(argv[2], NULL, 10) : pause_us;
	wild = argc > 3;
	versions = map(MAX_PAGES * sizeof(*versions) / PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	forked_memory = map(FORKED_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	add_region("private memory", map(pages / 2, MAP_PRIVATE | MAP_ANONYMOUS, -1), pages / 2);
	add_region("huge pages", map_huge(pages / 2), pages / 2);
	char *heap = sbrk((pages / 4 + 1) * PAGE);
	add_region("heap", on_page(heap), pages / 4);
	add_region("stack", on_page(stack), 64);
	add_region("shared memory", map(pages / 4, MAP_SHARED | MAP_ANONYMOUS, -1), pages / 4);
	add_region("memfd", map_memfd(pages / 4), pages / 4);
	add_region("private file", map_file(pages / 4), pages / 4);
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){.number = i, .random = i + 1};
		start(writer_main, &writers[i]);
	}
	start(mapper_main, NULL);
	if (wild)
		start(forker_main, NULL);
	harness_ready();
	while (harness_wait_check()) {
		check_all();
		harness_report();
	}
	return 0;
}
