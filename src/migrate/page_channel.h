/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sending side of the connections that carry pages.
 *
 * Producers fill buffers of up to 1 MiB and submit them; one sending thread for each connection takes them from a
 * common queue, cuts out zero pages, compresses, checksums and sends. One more thread for each connection reads what
 * comes back. The buffers are the bound of the queue: page_channel_buffer() waits while all are in use.
 *
 * Order: pieces may overtake each other. Between two barriers no page may be submitted twice, and a drop must not
 * concern a page that is submitted in between too.
 *
 * Failure: the first failure of any connection stops the channel; every later call returns it. So does a link on which
 * nothing has moved for the channel's patience while a call waited ("link-timeout"). No signals are used; a channel
 * must not be in use across fork().
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "migrate/frames.h"
#include "model/page_sink.h"

struct page_channel;
struct stream;

struct page_channel_options {
	struct stream *const *streams; /* borrowed: closed by the caller after page_channel_free() */
	size_t stream_count;           /* 1 to MIGRATE_MAX_CONNECTIONS */
	enum compress_mode compress;
	uint32_t codecs;           /* bits 1 << enum frame_codec that the other side takes */
	uint64_t bytes_per_second; /* 0 = no limit */
	uint64_t patience_ns;      /* how long nothing may move while somebody waits; 0 = PAGE_CHANNEL_PATIENCE_NS */
};

/* A destination that is there, and takes nothing for so long, has failed: the tree may be standing. */
#define PAGE_CHANNEL_PATIENCE_NS 30000000000ULL

struct page_channel_statistics {
	uint64_t pages;      /* with data */
	uint64_t zero_pages; /* sent as a flag */
	uint64_t dropped_pages;
	uint64_t raw_bytes;                      /* of pages with data */
	uint64_t wire_bytes;                     /* frames, with headers */
	uint64_t codec_bytes[FRAME_CODEC_COUNT]; /* raw bytes by the codec they travelled with */
	uint64_t blocked_ns;                     /* that threads waited for the link */
	uint64_t compress_ns;                    /* that threads spent on compression */
	uint64_t limited_ns;                     /* that threads waited for --bandwidth */
	uint64_t wire_bytes_per_second;          /* over the last second or so */
};

/* Starts the threads. Returns 0 or a failure. */
int page_channel_new(const struct page_channel_options *options, struct failure *failure,
		     struct page_channel **ret_channel);

/*
 * A buffer to fill, of FRAME_MAX_BYTES; waits while all are in use. It goes back by page_channel_submit() or
 * page_channel_return(). Returns 0 or the channel's failure. Any thread.
 */
int page_channel_buffer(struct page_channel *channel, struct failure *failure, struct page_buffer **ret_buffer);
void page_channel_return(struct page_channel *channel, struct page_buffer *buffer);
/*
 * Sends what is in the buffer as pages of (space, address). @bytes: 1 to FRAME_MAX_PAGES whole pages.
 * Takes the buffer in all cases. Returns 0 or the channel's failure. Any thread.
 */
int page_channel_submit(struct page_channel *channel, struct page_buffer *buffer, enum space_kind kind,
			uint32_t space_id, uint64_t address, size_t bytes, struct failure *failure);
/* Copies any number of whole pages into buffers and submits them. Returns 0 or the channel's failure. Any thread. */
int page_channel_send(struct page_channel *channel, enum space_kind kind, uint32_t space_id, uint64_t address,
		      const void *data, size_t bytes, struct failure *failure);
/* Tells that pages hold zeros, or are gone. @pages: at least 1. Returns 0 or the channel's failure. Any thread. */
int page_channel_zero(struct page_channel *channel, enum space_kind kind, uint32_t space_id, uint64_t address,
		      uint64_t pages, struct failure *failure);
int page_channel_drop(struct page_channel *channel, enum space_kind kind, uint32_t space_id, uint64_t address,
		      uint64_t pages, struct failure *failure);

/*
 * Waits until everything submitted so far is in place on the other side. No thread may submit meanwhile.
 * Returns 0 or the channel's failure.
 */
int page_channel_barrier(struct page_channel *channel, struct failure *failure);

/* Changes --bandwidth on the way; 0 = no limit (the last round, with the tree frozen). */
void page_channel_set_bandwidth(struct page_channel *channel, uint64_t bytes_per_second);
/* The first failure of the channel. Returns 0 if there is none, else -errno and a copy in @failure. */
int page_channel_failure(struct page_channel *channel, struct failure *failure);
void page_channel_statistics(struct page_channel *channel, struct page_channel_statistics *ret_statistics);
/*
 * Makes all waiting and later calls fail with "cancelled". Streams are shut down, so that threads blocked on the link
 * leave it. Any thread; not from a signal handler.
 */
void page_channel_cancel(struct page_channel *channel);
/*
 * Ends the threads and frees. What was submitted and not followed by a barrier may be lost; the streams are usable
 * only for closing. *channel becomes NULL; NULL is fine.
 */
void page_channel_free(struct page_channel **channel);
