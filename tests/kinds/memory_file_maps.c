/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapped files: private with changed and with clean pages, private read only, shared, beyond the file's end, of a
 * deleted file, and one whose descriptor has another offset and mode.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 16

static void fill_file(int fd)
{
	uint8_t page[PAGE];

	for (int i = 0; i < PAGES; i++) {
		memset(page, 'a' + i, sizeof(page));
		MUST((int)pwrite(fd, page, sizeof(page), i * PAGE));
	}
}

static uint8_t *map(int fd, size_t pages, int protection, int flags, size_t first_page)
{
	return MUST((uint8_t *)mmap(NULL, pages * PAGE, protection, flags, fd, first_page * PAGE));
}

static bool page_is(const uint8_t *page, uint8_t value)
{
	for (size_t i = 0; i < PAGE; i++)
		if (page[i] != value)
			return false;
	return true;
}

int main(void)
{
	int fd = MUST(open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644));
	fill_file(fd);
	uint8_t *private = map(fd, PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	memset(private + 3 * PAGE, '3', PAGE);
	memset(private + 9 * PAGE, 0, PAGE);
	uint8_t *read_only = map(fd, 4, PROT_READ, MAP_PRIVATE, 2);
	uint8_t *shared = map(fd, 4, PROT_READ | PROT_WRITE, MAP_SHARED, 4);
	/* Changed, then made read only: the changed page must survive. */
	uint8_t *was_written = map(fd, 2, PROT_READ | PROT_WRITE, MAP_PRIVATE, 6);
	memset(was_written, 'W', PAGE);
	MUST(mprotect(was_written, 2 * PAGE, PROT_READ | PROT_EXEC));
	uint8_t *beyond = map(fd, 4, PROT_READ | PROT_WRITE, MAP_PRIVATE, PAGES - 1);
	beyond[0] = 'B';
	int deleted_fd = MUST(open("deleted", O_RDWR | O_CREAT | O_TRUNC, 0644));
	fill_file(deleted_fd);
	uint8_t *deleted = map(deleted_fd, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	uint8_t *deleted_private = map(deleted_fd, 2, PROT_READ | PROT_WRITE, MAP_PRIVATE, 3);
	deleted_private[0] = 'D';
	MUST(unlink("deleted"));
	MUST(close(deleted_fd));
	uint8_t round = 0;

	harness_ready();
	while (harness_wait_check()) {
		round++;
		CHECK(page_is(private + 3 * PAGE, '3') && page_is(private + 9 * PAGE, 0), "changed private pages");
		for (int i = 0; i < PAGES; i++)
			if (i != 3 && i != 9 && (i < 4 || i > 7))
				CHECK(page_is(private + i * PAGE, 'a' + i), "clean private page %d", i);
		CHECK(page_is(read_only, 'c'));
		CHECK(page_is(was_written, 'W') && page_is(was_written + PAGE, 'a' + 7));
		CHECK(beyond[0] == 'B' && beyond[1] == 'a' + PAGES - 1);
		/* A shared page and the file are one. */
		shared[0] = round;
		uint8_t byte = 0;
		CHECK(pread(fd, &byte, 1, 4 * PAGE) == 1 && byte == round, "the file has %d, the map %d", byte, round);
		CHECK(private[4 * PAGE] == round, "a clean private page follows the file");
		CHECK(page_is(deleted + PAGE, 'b') && page_is(deleted + (PAGES - 1) * PAGE, 'a' + PAGES - 1));
		deleted[4 * PAGE] = round;
		CHECK(deleted_private[PAGE] == round && deleted_private[0] == 'D' && deleted_private[1] == 'd');
		CHECK(access("deleted", F_OK) < 0 && errno == ENOENT, "the deleted file has a name again");
		harness_report();
	}
	return 0;
}
