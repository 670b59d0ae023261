/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that moves away and back next to its old neighbours: the kernel joins them and forgets that they are tracked.
 * Each SIGUSR1 is the next phase; the last one checks every page.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PART = 27, PAGES = 3 * PART, ROOM = 10 * PART };

static char *area, *elsewhere;

static void write_pages(size_t first, size_t end, int value)
{
	memset(area + first * PAGE, value, (end - first) * PAGE);
}

static void move(char *from, char *to)
{
	if (mremap(from, PART * PAGE, PART * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		exit(1);
}

static int wanted(size_t page)
{
	return page < 6 ? 3 : page < 13 ? 2 : page < PART ? 3 : 1;
}

static const char *verdict(void)
{
	static char text[64];

	for (size_t at = 0; at < PAGES * (size_t)PAGE; at++)
		if (area[at] != wanted(at / PAGE)) {
			snprintf(text, sizeof(text), "bad page %zu: %d", at / PAGE, area[at]);
			return text;
		}
	return "ok";
}

static const char *go_on(unsigned phase)
{
	switch (phase) {
	case 1:
		move(area + PART * PAGE, elsewhere);
		return "moved";
	case 2:
		move(elsewhere, area + PART * PAGE);
		write_pages(0, 13, 2);
		return "moved back";
	case 3:
		write_pages(0, 6, 3);
		write_pages(13, PART, 3);
		return "written";
	default:
		return verdict();
	}
}

int main(void)
{
	sigset_t wake;
	int number;

	sigemptyset(&wake);
	sigaddset(&wake, SIGUSR1);
	sigprocmask(SIG_BLOCK, &wake, NULL);
	char *room = mmap(NULL, ROOM * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	area = mmap(room + PART * PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		    -1, 0);
	elsewhere = room + 8 * PART * PAGE;
	if (room == MAP_FAILED || area == MAP_FAILED)
		return 1;
	write_pages(0, PAGES, 1);
	for (unsigned phase = 0;; phase++) {
		printf("%s\n", phase ? go_on(phase) : "ready");
		fflush(stdout);
		sigwait(&wake, &number);
	}
}
