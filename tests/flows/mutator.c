/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutator SEED DIRECTORY: changes memory of every kind without end, and can say at any time whether each byte is what
 * it has to be. For dumps in increments, where a page may come from any of several images.
 *
 * Memory is a set of areas. Each page has a version, and its content is a function of area, page and version; version
 * 0 is what the kernel gives (zeros, or the file). Steps are drawn from a seeded generator: writes by the program and
 * by the kernel, dropping, moving, growing, replacing, protecting, forking.
 * SIGUSR1 makes it and its children check everything: a line "ok N …" or "bad …" follows, N counts the checks.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	WORDS = PAGE / 8,
	MAX_PAGES = 1024,
	CHILDREN = 3,
	STACK_PAGES = 64,
};

enum kind { ANON, HEAP, STACK, HUGE, SHARED_ANON, MEMFD_PRIVATE, MEMFD_SHARED, TMPFS_PRIVATE, DISK_PRIVATE, KINDS };

static const char *const kind_names[] = {
	"anon",          "heap",         "stack",         "huge",         "shared-anon",
	"memfd-private", "memfd-shared", "tmpfs-private", "disk-private",
};

struct area {
	enum kind kind;
	uint64_t id; /* of its content; a new one for each mapping */
	uint64_t *base;
	size_t pages;
	int fd;           /* -1 = no file */
	uint64_t *second; /* another mapping of the same shared memory */
	uint32_t versions[MAX_PAGES];
};

/* Read by the parent, written by the child that has the slot. */
struct slot {
	_Atomic uint32_t pid, checked, asked;
	char text[200];
};

static struct area areas[KINDS];
static struct slot *slots;
static int own_slot = -1;
static uint64_t generator;
static uint64_t steps, next_id = 1;
static uint32_t next_version = 1;
static volatile sig_atomic_t asked;
static const char *directory;

static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 31) * 0x7fb5d329728ea185ULL;
	value = (value ^ value >> 27) * 0x81dadef4bc2dd44dULL;
	return value ^ value >> 33;
}

static uint64_t draw(uint64_t below)
{
	generator += 0x9e3779b97f4a7c15ULL;
	return mix(generator) % below;
}

static void __attribute__((noreturn)) give_up(const char *what)
{
	printf("bad cannot %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

#define NEED(condition, what)          \
	do {                           \
		if (!(condition))      \
			give_up(what); \
	} while (0)

static bool is_file(const struct area *area)
{
	return area->kind == MEMFD_PRIVATE || area->kind == TMPFS_PRIVATE || area->kind == DISK_PRIVATE;
}

static bool is_shared(const struct area *area)
{
	return area->kind == SHARED_ANON || area->kind == MEMFD_SHARED;
}

/* What belongs on the page. */
static void content(const struct area *area, size_t page, uint32_t version, uint64_t *words)
{
	if (!version && !is_file(area)) {
		memset(words, 0, PAGE);
		return;
	}
	uint64_t start = mix(area->id << 40 ^ page << 20 ^ version * 0x100000001b3ULL);
	for (size_t i = 0; i < WORDS; i++)
		words[i] = start + i * 0x9e3779b97f4a7c15ULL;
}

static uint64_t *page_at(const struct area *area, size_t page)
{
	return area->base + page * WORDS;
}

/* ---- making areas ---- */

static int make_file(struct area *area)
{
	uint64_t words[WORDS];
	char path[4096];
	int fd;

	if (area->kind == MEMFD_PRIVATE || area->kind == MEMFD_SHARED) {
		fd = memfd_create("mutator", MFD_CLOEXEC);
	} else {
		snprintf(path, sizeof(path), "%s/%s-%d-%lu", area->kind == TMPFS_PRIVATE ? "/dev/shm" : directory,
			 "mutator", getpid(), area->id);
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (fd >= 0 && area->kind == TMPFS_PRIVATE)
			unlink(path);
	}
	NEED(fd >= 0 && !ftruncate(fd, MAX_PAGES * PAGE), "make a file");
	for (size_t page = 0; is_file(area) && page < MAX_PAGES; page++) {
		content(area, page, 0, words);
		NEED(pwrite(fd, words, PAGE, page * PAGE) == PAGE, "fill a file");
	}
	return fd;
}

static void make_area(struct area *area, enum kind kind, void *at, size_t pages)
{
	int flags = (kind == SHARED_ANON || kind == MEMFD_SHARED ? MAP_SHARED : MAP_PRIVATE) | (at ? MAP_FIXED : 0);

	*area = (struct area){.kind = kind, .id = next_id++, .pages = pages, .fd = -1};
	if (kind == MEMFD_PRIVATE || kind == MEMFD_SHARED || kind == TMPFS_PRIVATE || kind == DISK_PRIVATE)
		area->fd = make_file(area);
	else
		flags |= MAP_ANONYMOUS;
	area->base = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, flags, area->fd, 0);
	NEED(area->base != MAP_FAILED, "map an area");
	if (kind == MEMFD_SHARED) {
		area->second = mmap(NULL, MAX_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, area->fd, 0);
		NEED(area->second != MAP_FAILED, "map an area again");
	}
	if (area->fd >= 0 && kind != MEMFD_SHARED) {
		close(area->fd);
		area->fd = -1;
	}
}

static void make_all(uint64_t *stack)
{
	static const size_t huge = 2 << 20;

	for (enum kind kind = 0; kind < KINDS; kind++) {
		struct area *area = &areas[kind];
		if (kind == STACK) {
			*area = (struct area){
				.kind = kind, .id = next_id++, .base = stack, .pages = STACK_PAGES, .fd = -1};
		} else if (kind == HEAP) {
			sbrk(-(intptr_t)sbrk(0) & (PAGE - 1));
			*area = (struct area){
				.kind = kind, .id = next_id++, .base = sbrk(256 * PAGE), .pages = 256, .fd = -1};
		} else {
			make_area(area, kind, NULL, kind == HUGE ? MAX_PAGES : 256);
		}
		if (kind == HUGE) {
			munmap(area->base, MAX_PAGES * PAGE);
			char *room = mmap(NULL, 3 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			void *at = (void *)(((uintptr_t)room + huge - 1) & ~(huge - 1));
			make_area(area, kind, at, MAX_PAGES);
			madvise(area->base, MAX_PAGES * PAGE, MADV_HUGEPAGE);
		}
	}
}

/* ---- steps ---- */

static void write_page(struct area *area, size_t page)
{
	uint64_t words[WORDS];
	int ends[2];

	area->versions[page] = next_version++;
	content(area, page, area->versions[page], words);
	switch (draw(4)) {
	case 0: /* the kernel writes */
		NEED(!pipe(ends) && write(ends[1], words, PAGE) == PAGE &&
			     read(ends[0], page_at(area, page), PAGE) == PAGE,
		     "write through a pipe");
		close(ends[0]);
		close(ends[1]);
		return;
	case 1: /* past the mapping */
		if (area->fd >= 0) {
			NEED(pwrite(area->fd, words, PAGE, page * PAGE) == PAGE, "write a memfd");
			return;
		}
		break;
	case 2:
		if (area->second) {
			memcpy(area->second + page * WORDS, words, PAGE);
			return;
		}
	}
	memcpy(page_at(area, page), words, PAGE);
}

static void drop_pages(struct area *area, size_t page, size_t count)
{
	if (area->kind == STACK || area->kind == HUGE)
		return;
	NEED(!madvise(page_at(area, page), count * PAGE, is_shared(area) ? MADV_REMOVE : MADV_DONTNEED), "madvise");
	for (size_t i = 0; i < count; i++)
		area->versions[page + i] = 0;
	if (draw(2))
		(void)*(volatile uint64_t *)page_at(area, page);
}

static void protect(struct area *area)
{
	size_t page = draw(2) ? draw(area->pages) : 0, count = page ? 1 + draw(area->pages - page) : area->pages;

	if (area->kind == STACK || area->kind == HUGE)
		page = 0, count = area->pages;
	if (area->kind == STACK)
		return;
	NEED(!mprotect(page_at(area, page), count * PAGE, draw(2) ? PROT_NONE : PROT_READ), "mprotect");
	NEED(!mprotect(page_at(area, page), count * PAGE, PROT_READ | PROT_WRITE), "mprotect back");
}

static bool is_movable(const struct area *area)
{
	return area->kind != STACK && area->kind != HEAP && area->kind != HUGE;
}

static void move(struct area *area)
{
	size_t bytes = area->pages * PAGE;
	void *to = is_movable(area) ? mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;

	if (!to)
		return;
	area->base = mremap(area->base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	NEED(area->base != MAP_FAILED, "mremap");
}

static void resize(struct area *area)
{
	size_t pages = 64 + draw(MAX_PAGES - 64);

	if (area->kind == HEAP && area->pages < MAX_PAGES) {
		NEED(sbrk(PAGE) == (void *)page_at(area, area->pages), "grow the heap");
		area->versions[area->pages++] = 0;
	}
	/* What lies behind the end of shared memory would keep its content. */
	if (!is_movable(area) || is_shared(area))
		return;
	area->base = mremap(area->base, area->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
	NEED(area->base != MAP_FAILED, "mremap");
	for (size_t page = area->pages; page < pages; page++)
		area->versions[page] = 0;
	area->pages = pages;
}

/* Another mapping at the same place, or at another. */
static void replace(struct area *area)
{
	size_t pages = area->pages;
	void *at = area->base;

	if (!is_movable(area))
		return;
	if (draw(2)) {
		munmap(at, pages * PAGE);
		at = NULL;
	}
	if (area->second)
		munmap(area->second, MAX_PAGES * PAGE);
	if (area->fd >= 0)
		close(area->fd);
	make_area(area, area->kind, at, pages);
}

/* ---- checks ---- */

/* Writes what is wrong into @text, or nothing. */
static void check_all(char *text, size_t size)
{
	uint64_t words[WORDS];

	text[0] = '\0';
	for (enum kind kind = 0; kind < KINDS; kind++)
		for (size_t page = 0; page < areas[kind].pages; page++) {
			const struct area *area = &areas[kind];
			content(area, page, area->versions[page], words);
			if (memcmp(page_at(area, page), words, PAGE)) {
				snprintf(text, size, "%d: %s page %zu at %p, version %u, first word %lx", getpid(),
					 kind_names[kind], page, (void *)page_at(area, page), area->versions[page],
					 *page_at(area, page));
				return;
			}
		}
}

static void answer_parent(void)
{
	struct slot *slot = &slots[own_slot];

	if (slot->checked == slot->asked)
		return;
	uint32_t number = slot->asked;
	check_all(slot->text, sizeof(slot->text));
	slot->checked = number;
}

static void nap(long ns)
{
	nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

static void answer_user(void)
{
	static unsigned number;
	char text[200];
	unsigned children = 0;

	asked = 0;
	check_all(text, sizeof(text));
	for (int i = 0; i < CHILDREN; i++)
		if (slots[i].pid)
			slots[i].asked++;
	for (int i = 0; i < CHILDREN; i++) {
		while (slots[i].pid && slots[i].checked != slots[i].asked)
			nap(1000000);
		children += slots[i].pid != 0;
		if (slots[i].pid && slots[i].text[0] && !text[0])
			strcpy(text, slots[i].text);
	}
	number++;
	if (text[0])
		printf("bad %s\n", text);
	else
		printf("ok %u after %lu steps, %u children\n", number, steps, children);
	fflush(stdout);
}

/* ---- processes ---- */

/* What children share with the parent they would write over each other: it becomes theirs alone. */
static void own_shared(void)
{
	for (enum kind kind = 0; kind < KINDS; kind++)
		if (is_shared(&areas[kind])) {
			munmap(areas[kind].base, areas[kind].pages * PAGE);
			if (areas[kind].second)
				munmap(areas[kind].second, MAX_PAGES * PAGE);
			if (areas[kind].fd >= 0)
				close(areas[kind].fd);
			next_id += 1000;
			make_area(&areas[kind], kind, NULL, 256);
		}
}

static void live(void) __attribute__((noreturn));

static void start_or_end_child(void)
{
	int index = draw(CHILDREN);

	if (own_slot >= 0)
		return;
	if (slots[index].pid) {
		kill(slots[index].pid, SIGKILL);
		waitpid(slots[index].pid, NULL, 0);
		slots[index].pid = 0;
		return;
	}
	slots[index].asked = slots[index].checked = 0;
	pid_t pid = fork();
	NEED(pid >= 0, "fork");
	if (pid == 0) {
		own_slot = index;
		generator ^= getpid() * 0x1000193ULL;
		own_shared();
		live();
	}
	slots[index].pid = pid;
}

static void step(void)
{
	struct area *area = &areas[draw(KINDS)];
	size_t page = draw(area->pages), left = area->pages - page;
	uint64_t choice = draw(1000);

	steps++;
	if (choice < 940)
		write_page(area, page);
	else if (choice < 970)
		drop_pages(area, page, 1 + draw(left < 16 ? left : 16));
	else if (choice < 980)
		protect(area);
	else if (choice < 987)
		move(area);
	else if (choice < 993)
		resize(area);
	else if (choice < 998)
		replace(area);
	else
		start_or_end_child();
}

static void live(void)
{
	for (;;) {
		for (int i = 0; i < 20; i++)
			step();
		if (own_slot >= 0)
			answer_parent();
		else if (asked)
			answer_user();
		nap(2000000);
	}
}

static void on_ask(int signal)
{
	asked = 1;
}

int main(int argc, char **argv)
{
	uint64_t stack[(STACK_PAGES + 1) * WORDS];

	static char buffer[BUFSIZ];

	memset(stack, 0, sizeof(stack));
	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer)); /* the heap is ours alone */
	if (argc != 3)
		return 2;
	generator = strtoull(argv[1], NULL, 0);
	directory = argv[2];
	slots = mmap(NULL, CHILDREN * sizeof(*slots), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	NEED(slots != MAP_FAILED, "map the slots");
	sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_ask, .sa_flags = SA_RESTART}, NULL);
	make_all((uint64_t *)(((uintptr_t)stack + PAGE - 1) & ~(uintptr_t)(PAGE - 1)));
	printf("ready\n");
	fflush(stdout);
	live();
}
