/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges are cut into pieces, which threads take one after another. read() and write() are used on both sides: a
 * mapping would cost a fault for each page, and whoever truncates the file meanwhile would end criu by SIGBUS.
 */
#include "kinds/mem/page_copy.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/fd.h"

enum {
	PAGE_BYTES = 4096,
	PIECE_BYTES = 512 * 1024,
	/* Below this a thread costs more than it saves. */
	BYTES_PER_THREAD = 8 * 1024 * 1024,
	MAX_THREADS = 16,
};

struct page_copy {
	int from, to;
	uint64_t to_size;
	struct page_range *pieces;
	size_t count, capacity;
	atomic_size_t next;
	atomic_int error;
	atomic_bool writing;
};

static bool is_zero_page(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

int page_copy_read(int fd, char *buffer, uint64_t offset, uint64_t bytes)
{
	uint64_t done = 0;

	while (done < bytes) {
		ssize_t got = pread(fd, buffer + done, bytes - done, offset + done);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		done += got;
	}
	memset(buffer + done, 0, bytes - done);
	return 0;
}

static int write_piece(const struct page_copy *copy, const char *buffer, const struct page_range *piece)
{
	uint64_t bytes = piece->bytes;

	if (piece->to >= copy->to_size)
		return 0;
	if (bytes > copy->to_size - piece->to)
		bytes = copy->to_size - piece->to;
	for (uint64_t at = 0; at < bytes;) {
		uint64_t end = at;
		while (end < bytes && !is_zero_page(buffer + end))
			end += PAGE_BYTES;
		uint64_t stop = end < bytes ? end : bytes;
		int error = stop > at ? pwrite_full(copy->to, buffer + at, stop - at, piece->to + at) : 0;
		if (error < 0)
			return error;
		at = end + PAGE_BYTES;
	}
	return 0;
}

static void *run_thread(void *argument)
{
	struct page_copy *copy = argument;
	_cleanup_free_ char *buffer = xcalloc(1, PIECE_BYTES);
	size_t at;

	while (!atomic_load(&copy->error) && (at = atomic_fetch_add(&copy->next, 1)) < copy->count) {
		int error = page_copy_read(copy->from, buffer, copy->pieces[at].from, copy->pieces[at].bytes);
		if (!error) {
			error = write_piece(copy, buffer, &copy->pieces[at]);
			if (error < 0)
				atomic_store(&copy->writing, true);
		}
		if (error < 0)
			atomic_store(&copy->error, error);
	}
	return NULL;
}

static uint64_t cut_pieces(struct page_copy *copy, const struct page_range *ranges, size_t count)
{
	uint64_t total = 0;

	for (size_t i = 0; i < count; i++)
		for (uint64_t done = 0; done < ranges[i].bytes; done += PIECE_BYTES) {
			uint64_t left = ranges[i].bytes - done;
			ARRAY_GROW(copy->pieces, copy->count, copy->capacity);
			copy->pieces[copy->count++] = (struct page_range){ranges[i].from + done, ranges[i].to + done,
									  left < PIECE_BYTES ? left : PIECE_BYTES};
			total += left < PIECE_BYTES ? left : PIECE_BYTES;
		}
	return total;
}

int page_copy(int from, int to, uint64_t to_size, const struct page_range *ranges, size_t count, bool *ret_writing)
{
	struct page_copy copy = {.from = from, .to = to, .to_size = to_size};
	pthread_t threads[MAX_THREADS];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t wanted = cut_pieces(&copy, ranges, count) / BYTES_PER_THREAD, started = 1;

	if (cores < 1 || wanted > (size_t)cores)
		wanted = cores < 1 ? 1 : cores;
	if (wanted > MAX_THREADS)
		wanted = MAX_THREADS;
	while (started < wanted && !pthread_create(&threads[started], NULL, run_thread, &copy))
		started++;
	run_thread(&copy);
	for (size_t i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	free(copy.pieces);
	*ret_writing = atomic_load(&copy.writing);
	return atomic_load(&copy.error);
}
