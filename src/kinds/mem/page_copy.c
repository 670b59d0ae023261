/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges are cut into pieces, which threads take one after another. read() and write() are used for files: a
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

struct page_feed {
	int from;
	struct page_range *pieces;
	size_t count, capacity;
	int (*take)(void *context, const struct page_range *piece, const char *data);
	void *context;
	atomic_size_t next;
	atomic_int error;
	atomic_bool taking;
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

static void *run_thread(void *argument)
{
	struct page_feed *feed = argument;
	_cleanup_free_ char *buffer = xcalloc(1, PIECE_BYTES);
	size_t at;

	while (!atomic_load(&feed->error) && (at = atomic_fetch_add(&feed->next, 1)) < feed->count) {
		int error = page_copy_read(feed->from, buffer, feed->pieces[at].from, feed->pieces[at].bytes);
		if (!error) {
			error = feed->take(feed->context, &feed->pieces[at], buffer);
			if (error < 0)
				atomic_store(&feed->taking, true);
		}
		if (error < 0)
			atomic_store(&feed->error, error);
	}
	return NULL;
}

static uint64_t cut_pieces(struct page_feed *feed, const struct page_range *ranges, size_t count)
{
	uint64_t total = 0;

	for (size_t i = 0; i < count; i++)
		for (uint64_t done = 0; done < ranges[i].bytes; done += PIECE_BYTES) {
			uint64_t left = ranges[i].bytes - done;
			ARRAY_GROW(feed->pieces, feed->count, feed->capacity);
			feed->pieces[feed->count++] = (struct page_range){ranges[i].from + done, ranges[i].to + done,
									  left < PIECE_BYTES ? left : PIECE_BYTES};
			total += left < PIECE_BYTES ? left : PIECE_BYTES;
		}
	return total;
}

int page_feed(int from, const struct page_range *ranges, size_t count,
	      int (*take)(void *context, const struct page_range *piece, const char *data), void *context,
	      bool *ret_taking)
{
	struct page_feed feed = {.from = from, .take = take, .context = context};
	pthread_t threads[MAX_THREADS];
	size_t wanted = cut_pieces(&feed, ranges, count) / BYTES_PER_THREAD, started = 1;
	long cores = wanted > 1 ? sysconf(_SC_NPROCESSORS_ONLN) : 1;

	if (cores < 1 || wanted > (size_t)cores)
		wanted = cores < 1 ? 1 : cores;
	if (wanted > MAX_THREADS)
		wanted = MAX_THREADS;
	while (started < wanted && !pthread_create(&threads[started], NULL, run_thread, &feed))
		started++;
	run_thread(&feed);
	for (size_t i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	free(feed.pieces);
	*ret_taking = atomic_load(&feed.taking);
	return atomic_load(&feed.error);
}

/* ---- into a file ---- */

struct target_file {
	int fd;
	uint64_t size;
};

static int write_piece(void *context, const struct page_range *piece, const char *data)
{
	const struct target_file *to = context;
	uint64_t bytes = piece->bytes;

	if (piece->to >= to->size)
		return 0;
	if (bytes > to->size - piece->to)
		bytes = to->size - piece->to;
	for (uint64_t at = 0; at < bytes;) {
		uint64_t end = at;
		while (end < bytes && !is_zero_page(data + end))
			end += PAGE_BYTES;
		uint64_t stop = end < bytes ? end : bytes;
		int error = stop > at ? pwrite_full(to->fd, data + at, stop - at, piece->to + at) : 0;
		if (error < 0)
			return error;
		at = end + PAGE_BYTES;
	}
	return 0;
}

int page_copy(int from, int to, uint64_t to_size, const struct page_range *ranges, size_t count, bool *ret_writing)
{
	struct target_file target = {to, to_size};

	return page_feed(from, ranges, count, write_piece, &target, ret_writing);
}
