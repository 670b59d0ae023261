/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receiving side of the connections that carry pages: one thread for each. It knows no memory: the operations
 * tell where pages go, and data that travels raw is read from the socket straight into that place.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "migrate/frames.h"

struct page_receiver;
struct stream;

/*
 * Called by the receiving threads, several at once, for different pages. Addresses are multiples of a page, ranges do
 * not wrap; whether there is such a space and range is for these functions to check: they return 0 or a failure.
 */
struct page_receiver_operations {
	/*
	 * Where @pages pages (at most FRAME_MAX_PAGES) are to be written, contiguous. The memory stays valid until
	 * `done` for the same pages. If the frame turns out broken, `done` is not called and the receiver fails.
	 */
	int (*place)(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint32_t pages,
		     struct failure *failure, void **ret_memory);
	/* The pages are there. May be NULL. */
	int (*done)(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint32_t pages,
		    void *memory, struct failure *failure);
	/* The pages hold zeros. They may have held something else in an earlier round. */
	int (*zero)(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint64_t pages,
		    struct failure *failure);
	/* The pages are gone. */
	int (*drop)(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint64_t pages,
		    struct failure *failure);
};

struct page_receiver_statistics {
	uint64_t pages, zero_pages, dropped_pages;
	uint64_t raw_bytes, wire_bytes;
};

/*
 * Starts the threads. @streams are borrowed: closed by the caller after page_receiver_free(). Barriers are
 * acknowledged. Returns 0 or a failure.
 */
int page_receiver_new(struct stream *const *streams, size_t stream_count,
		      const struct page_receiver_operations *operations, void *context, struct failure *failure,
		      struct page_receiver **ret_receiver);
/* The first failure of any thread. Returns 0 if there is none, else -errno and a copy in @failure. */
int page_receiver_failure(struct page_receiver *receiver, struct failure *failure);
void page_receiver_statistics(struct page_receiver *receiver, struct page_receiver_statistics *ret_statistics);
/* An eventfd that is readable once a thread has ended, for poll(2). Borrowed. */
int page_receiver_fd(const struct page_receiver *receiver);
/* Waits until all threads have ended by themselves (the source closed). Returns 0 or the first failure. */
int page_receiver_join(struct page_receiver *receiver, struct failure *failure);
/* Shuts the streams down, ends the threads and frees. *receiver becomes NULL; NULL is fine. */
void page_receiver_free(struct page_receiver **receiver);
