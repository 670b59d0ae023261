/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_batch.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/hash.h"
#include "migrate/page_queue.h"

/* Shorter runs are compressed without a trial. */
enum { TRIAL_FROM_BYTES = 64 << 10 };
/* Number of pages that one frame may tell of without data. */
#define PLAIN_MAX_PAGES (UINT64_C(1) << 30)

int page_batch_init(struct page_batch *batch)
{
	void *scratch = mmap(NULL, FRAME_MAX_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (scratch == MAP_FAILED)
		return -errno;
	batch->scratch = scratch;
	return 0;
}

void page_batch_destroy(struct page_batch *batch)
{
	if (batch->scratch)
		munmap(batch->scratch, FRAME_MAX_BYTES);
	batch->scratch = NULL;
}

void page_batch_clear(struct page_batch *batch)
{
	batch->frame_count = 0;
	batch->part_count = 0;
	batch->wire_bytes = 0;
	batch->scratch_used = 0;
	batch->tried_bytes = batch->packed_bytes = batch->compress_ns = 0;
}

static void add_frame(struct page_batch *batch, const struct frame *frame, const void *payload)
{
	size_t index = batch->frame_count++;

	batch->frames[index] = *frame;
	if (frame->payload_bytes)
		batch->frames[index].checksum = XXH3_64bits(payload, frame->payload_bytes);
	frame_encode(&batch->frames[index], batch->headers[index]);
	batch->parts[batch->part_count++] = (struct iovec){batch->headers[index], FRAME_HEADER_BYTES};
	if (frame->payload_bytes)
		batch->parts[batch->part_count++] = (struct iovec){(void *)payload, frame->payload_bytes};
	batch->wire_bytes += FRAME_HEADER_BYTES + frame->payload_bytes;
}

void page_batch_add_plain(struct page_batch *batch, enum frame_type type, uint64_t address, uint64_t sequence)
{
	const struct frame frame = {.type = type, .address = address, .sequence = sequence};

	add_frame(batch, &frame, NULL);
}

static bool is_zero_page(const uint8_t *page)
{
	const uint64_t *words = (const uint64_t *)page;

	/* Nearly every page that is not zero shows it in its first words. */
	if (words[0] | words[1] | words[FRAME_PAGE_BYTES / 16])
		return false;
	return !memcmp(page, page + 8, FRAME_PAGE_BYTES - 8);
}

/* Compresses into what is left of the scratch. Returns the compressed size or 0. */
static size_t pack(struct page_batch *batch, struct compressor *compressor, enum frame_codec codec, const void *data,
		   size_t bytes)
{
	uint8_t *out = batch->scratch + batch->scratch_used;
	uint64_t start_ns = clock_now_ns();
	size_t packed = 0;

	if (bytes < TRIAL_FROM_BYTES || compressor_worthwhile(compressor, data, bytes, out))
		packed = compressor_pack(compressor, codec, data, bytes, out);
	batch->compress_ns += clock_now_ns() - start_ns;
	batch->tried_bytes += bytes;
	batch->packed_bytes += packed ? packed : bytes;
	batch->scratch_used += packed;
	return packed;
}

static void add_data(struct page_batch *batch, struct frame *frame, const uint8_t *data, struct compressor *compressor,
		     enum frame_codec codec)
{
	size_t bytes = (size_t)frame->pages * FRAME_PAGE_BYTES, packed = 0;
	const void *payload = data;

	if (codec != FRAME_RAW) {
		payload = batch->scratch + batch->scratch_used;
		packed = pack(batch, compressor, codec, data, bytes);
	}
	frame->codec = packed ? codec : FRAME_RAW;
	frame->payload_bytes = (uint32_t)(packed ? packed : bytes);
	add_frame(batch, frame, packed ? payload : data);
}

static void fill_plain(struct page_batch *batch, const struct queued_piece *piece, struct frame frame)
{
	for (uint64_t left = piece->pages; left; left -= frame.pages) {
		frame.pages = (uint32_t)(left < PLAIN_MAX_PAGES ? left : PLAIN_MAX_PAGES);
		add_frame(batch, &frame, NULL);
		frame.address += (uint64_t)frame.pages * FRAME_PAGE_BYTES;
		frame.sequence++;
	}
}

void page_batch_fill(struct page_batch *batch, const struct queued_piece *piece, const uint8_t *data,
		     struct compressor *compressor, enum frame_codec codec, uint64_t sequence)
{
	struct frame frame = {
		.type = piece->type,
		.space_kind = piece->space_kind,
		.space_id = piece->space_id,
		.address = piece->address,
		.sequence = sequence,
	};

	if (piece->type != FRAME_PAGES) {
		fill_plain(batch, piece, frame);
		return;
	}
	for (uint64_t page = 0, end; page < piece->pages; page = end) {
		bool zero = is_zero_page(data + page * FRAME_PAGE_BYTES);

		for (end = page + 1; end < piece->pages; end++)
			if (is_zero_page(data + end * FRAME_PAGE_BYTES) != zero)
				break;
		frame.type = zero ? FRAME_ZERO : FRAME_PAGES;
		frame.codec = FRAME_RAW;
		frame.address = piece->address + page * FRAME_PAGE_BYTES;
		frame.pages = (uint32_t)(end - page);
		frame.payload_bytes = 0;
		if (zero)
			add_frame(batch, &frame, NULL);
		else
			add_data(batch, &frame, data + page * FRAME_PAGE_BYTES, compressor, codec);
		frame.sequence++;
	}
}
