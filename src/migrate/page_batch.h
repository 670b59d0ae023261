/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frames of one piece of pages, made ready to leave in one system call: runs of zero pages become ZERO frames, the
 * others PAGES frames, compressed if it pays. Private to the page channel.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "migrate/compression.h"
#include "migrate/frames.h"

struct queued_piece;

/* Alternating zero and other pages make as many frames as pages. */
enum { BATCH_FRAMES = FRAME_MAX_PAGES };

struct page_batch {
	struct frame frames[BATCH_FRAMES];
	uint8_t headers[BATCH_FRAMES][FRAME_HEADER_BYTES];
	struct iovec parts[2 * BATCH_FRAMES];
	size_t frame_count;
	int part_count;
	uint64_t wire_bytes;
	uint8_t *scratch; /* FRAME_MAX_BYTES, for compressed blocks */
	size_t scratch_used;
	/* What was learnt about the codec. */
	uint64_t tried_bytes, packed_bytes, compress_ns;
};

/* Returns 0 or -ENOMEM. */
int page_batch_init(struct page_batch *batch);
void page_batch_destroy(struct page_batch *batch);
/* Starts anew. */
void page_batch_clear(struct page_batch *batch);
/*
 * Adds the frames of @piece; for PAGES, @data has its pages, which must stay there until the batch was sent.
 * @codec     to compress with; FRAME_RAW = do not
 * @sequence  of the first frame
 */
void page_batch_fill(struct page_batch *batch, const struct queued_piece *piece, const uint8_t *data,
		     struct compressor *compressor, enum frame_codec codec, uint64_t sequence);
/* Adds one frame without pages. */
void page_batch_add_plain(struct page_batch *batch, enum frame_type type, uint64_t address, uint64_t sequence);
