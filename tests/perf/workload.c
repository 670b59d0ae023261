/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The programs that the benchmark dumps: workload KIND [NUMBER]. Says "ready" on standard output and waits. On SIGUSR1
 * it checks its memory and says "intact" or "damaged".
 *
 *	memory MIB     private memory, every page different      huge MIB     the same in huge pages
 *	tree COUNT     processes over 10 MiB that fork shares     threads COUNT
 *	files COUNT    open files and as many pipes with data     vmas COUNT   mappings
 *	sparse GIB     of which 10 MiB are used
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define GIB (1UL << 30)
#define PAGE 4096UL
#define HUGE_PAGE (2 * MIB)

struct area {
	uint64_t *words;
	size_t bytes, step_bytes;
};

static void die(const char *what)
{
	fprintf(stderr, "workload: %s: %m\n", what);
	exit(1);
}

static void *map(size_t bytes, int flags)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (memory == MAP_FAILED)
		die("memory");
	return memory;
}

/* Not compressible and no two pages alike, but quick to make and to check. */
static uint64_t word(size_t i)
{
	uint64_t value = i * 0x9e3779b97f4a7c15ULL;

	return value ^ value >> 29;
}

static void fill(struct area *area)
{
	for (size_t offset = 0; offset < area->bytes; offset += area->step_bytes)
		for (size_t i = 0; i < PAGE / 8; i++)
			area->words[offset / 8 + i] = word(offset / 8 + i);
}

static int is_intact(const struct area *area)
{
	for (size_t offset = 0; offset < area->bytes; offset += area->step_bytes)
		for (size_t i = 0; i < PAGE / 8; i++)
			if (area->words[offset / 8 + i] != word(offset / 8 + i))
				return 0;
	return 1;
}

static struct area make_memory(size_t bytes, int huge)
{
	char *memory = map(bytes + HUGE_PAGE, MAP_NORESERVE);
	struct area area = {.bytes = bytes, .step_bytes = PAGE};

	area.words = (uint64_t *)(((uintptr_t)memory + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	if (madvise(area.words, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0)
		die("madvise");
	fill(&area);
	return area;
}

static struct area make_tree(long count)
{
	struct area area = make_memory(10 * MIB, 0);

	for (long i = 1; i < count; i++) {
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0)
			for (;;)
				pause();
	}
	return area;
}

static void *wait_forever(void *argument)
{
	for (;;)
		pause();
	return NULL;
}

static struct area make_threads(long count)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (long i = 1; i < count; i++)
		if ((errno = pthread_create(&thread, &attributes, wait_forever, NULL)))
			die("thread");
	return make_memory(MIB, 0);
}

static struct area make_files(long count)
{
	struct rlimit limit;
	char name[32];
	int ends[2];

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	for (long i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "file-%ld", i);
		if (open(name, O_RDWR | O_CREAT, 0600) < 0)
			die(name);
		if (pipe(ends) < 0 || write(ends[1], name, strlen(name)) < 0)
			die("pipe");
	}
	return make_memory(MIB, 0);
}

static struct area make_mappings(long count)
{
	char *memory = map(count * PAGE, 0);

	for (long i = 0; i < count; i++) {
		memory[i * PAGE] = i;
		/* Neighbours differ, so that they do not become one. */
		if (i % 2 && mprotect(memory + i * PAGE, PAGE, PROT_READ) < 0)
			die("mprotect");
	}
	return make_memory(MIB, 0);
}

static struct area make_sparse(size_t bytes)
{
	struct area area = {.bytes = bytes, .step_bytes = bytes / (10 * MIB / PAGE) & ~(PAGE - 1)};

	area.words = map(bytes, MAP_NORESERVE);
	fill(&area);
	return area;
}

/* Sums up and changes one page after the other, in no order, and says every 50 ms how many it has done. */
static void __attribute__((noreturn)) write_for_ever(size_t bytes)
{
	enum { PAGES_A_LOOK = 256, LOOK_NS = 50000000 };
	uint64_t *words = map(bytes, 0), done = 0, last_ns = 0, sum = 0;
	struct timespec now;

	memset(words, 1, bytes);
	puts("ready");
	for (uint64_t seed = 1;;) {
		for (int i = 0; i < PAGES_A_LOOK; i++) {
			seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
			uint64_t *page = words + (seed >> 20) % (bytes / PAGE) * (PAGE / 8);
			for (size_t w = 0; w < PAGE / 8; w++)
				sum += page[w];
			page[seed % (PAGE / 8)] = sum;
		}
		done += PAGES_A_LOOK;
		clock_gettime(CLOCK_MONOTONIC, &now);
		uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
		if (now_ns - last_ns < LOOK_NS)
			continue;
		last_ns = now_ns;
		printf("%lu %lu\n", now_ns, done);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	long number = argc > 2 ? atol(argv[2]) : 1;
	struct area area = {.step_bytes = PAGE};
	sigset_t set;
	int got;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (!strcmp(kind, "writer"))
		write_for_ever(number * MIB);
	if (!strcmp(kind, "memory") || !strcmp(kind, "huge"))
		area = make_memory(number * MIB, kind[0] == 'h');
	else if (!strcmp(kind, "tree"))
		area = make_tree(number);
	else if (!strcmp(kind, "threads"))
		area = make_threads(number);
	else if (!strcmp(kind, "files"))
		area = make_files(number);
	else if (!strcmp(kind, "vmas"))
		area = make_mappings(number);
	else if (!strcmp(kind, "sparse"))
		area = make_sparse(number * GIB);
	else
		die("usage: workload KIND [NUMBER]");
	puts("ready");
	fflush(stdout);
	for (;;)
		if (sigwait(&set, &got) == 0) {
			puts(is_intact(&area) ? "intact" : "damaged");
			fflush(stdout);
		}
}
