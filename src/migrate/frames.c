/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/frames.h"

#include <endian.h>
#include <lz4.h>
#include <stdio.h>
#include <string.h>
#include <zstd.h>

#include "base/hash.h"
#include "migrate/stream.h"

/* Addresses of processes end below this; so do offsets of shared memory. */
#define ADDRESS_END (UINT64_C(1) << 47)

/* The header on the wire, all little-endian. */
struct wire_header {
	uint32_t magic;
	uint16_t type;
	uint16_t codec;
	uint32_t space_kind;
	uint32_t space_id;
	uint64_t address;
	uint32_t pages;
	uint32_t payload_bytes;
	uint64_t checksum;
	uint64_t sequence;
};
_Static_assert(sizeof(struct wire_header) == FRAME_HEADER_BYTES, "no padding");

void frame_encode(const struct frame *frame, uint8_t bytes[FRAME_HEADER_BYTES])
{
	const struct wire_header header = {
		.magic = htole32(FRAME_MAGIC),
		.type = htole16((uint16_t)frame->type),
		.codec = htole16((uint16_t)frame->codec),
		.space_kind = htole32(frame->space_kind),
		.space_id = htole32(frame->space_id),
		.address = htole64(frame->address),
		.pages = htole32(frame->pages),
		.payload_bytes = htole32(frame->payload_bytes),
		.checksum = htole64(frame->checksum),
		.sequence = htole64(frame->sequence),
	};

	memcpy(bytes, &header, sizeof(header));
}

/* What a frame of each type may have. Returns what is wrong, or NULL. */
static const char *wrong_payload(const struct frame *frame)
{
	uint64_t bytes = (uint64_t)frame->pages * FRAME_PAGE_BYTES;

	if (frame->type != FRAME_PAGES) {
		if (frame->payload_bytes || frame->checksum || frame->codec != FRAME_RAW)
			return "a payload where there is none";
		return NULL;
	}
	if (frame->pages > FRAME_MAX_PAGES)
		return "too many pages";
	if (frame->codec == FRAME_RAW ? frame->payload_bytes != bytes
				      : !frame->payload_bytes || frame->payload_bytes >= bytes)
		return "a payload of a wrong length";
	return NULL;
}

static const char *wrong_range(const struct frame *frame)
{
	uint64_t bytes = (uint64_t)frame->pages * FRAME_PAGE_BYTES;

	if (frame->type == FRAME_BARRIER || frame->type == FRAME_ACK)
		return frame->pages || frame->space_kind || frame->space_id ? "pages where there are none" : NULL;
	if (frame->space_kind != SPACE_PROCESS && frame->space_kind != SPACE_SHMEM)
		return "an unknown kind of memory";
	if (!frame->pages || (frame->type == FRAME_REQUEST && frame->pages > FRAME_MAX_PAGES))
		return "a wrong number of pages";
	if (frame->address % FRAME_PAGE_BYTES || frame->address >= ADDRESS_END || bytes > ADDRESS_END - frame->address)
		return "an impossible address";
	return NULL;
}

int frame_decode(const uint8_t bytes[FRAME_HEADER_BYTES], struct failure *failure, struct frame *ret_frame)
{
	struct wire_header header;
	const char *wrong = NULL;

	memcpy(&header, bytes, sizeof(header));
	struct frame frame = {
		.type = le16toh(header.type),
		.codec = le16toh(header.codec),
		.space_kind = le32toh(header.space_kind),
		.space_id = le32toh(header.space_id),
		.address = le64toh(header.address),
		.pages = le32toh(header.pages),
		.payload_bytes = le32toh(header.payload_bytes),
		.checksum = le64toh(header.checksum),
		.sequence = le64toh(header.sequence),
	};
	if (le32toh(header.magic) != FRAME_MAGIC)
		wrong = "no frame at all";
	else if (frame.type < FRAME_PAGES || frame.type >= FRAME_TYPE_COUNT)
		wrong = "an unknown type";
	else if (frame.codec >= FRAME_CODEC_COUNT)
		wrong = "an unknown codec";
	else
		wrong = wrong_range(&frame) ?: wrong_payload(&frame);
	if (wrong)
		return fail(failure, EPROTO, "frame-header", NULL, NULL, "a broken frame arrived: %s", wrong);
	*ret_frame = frame;
	return 0;
}

int frame_send(struct stream *stream, struct frame *frame, const void *payload)
{
	uint8_t header[FRAME_HEADER_BYTES];
	struct iovec parts[2] = {{header, sizeof(header)}, {(void *)payload, frame->payload_bytes}};

	frame->checksum = frame->payload_bytes ? XXH3_64bits(payload, frame->payload_bytes) : 0;
	frame_encode(frame, header);
	return stream_writev(stream, parts, 2);
}

int frame_receive(struct stream *stream, uint64_t sequence, struct failure *failure, struct frame *ret_frame)
{
	uint8_t header[FRAME_HEADER_BYTES];
	struct frame frame;

	int r = stream_read_full(stream, header, 1);
	if (r == -ENODATA)
		return r;
	if (!r)
		r = stream_read_full(stream, header + 1, sizeof(header) - 1);
	if (r < 0)
		return stream_fail(stream, r, failure);
	r = frame_decode(header, failure, &frame);
	if (r < 0)
		return fail_in(failure, "%s", stream_peer(stream));
	if (frame.sequence != sequence)
		return fail(failure, EPROTO, "frame-sequence", stream_peer(stream), NULL,
			    "frame %llu arrived where %llu was to come", (unsigned long long)frame.sequence,
			    (unsigned long long)sequence);
	*ret_frame = frame;
	return 0;
}

static int check_payload(const struct frame *frame, const void *payload, struct failure *failure)
{
	if (XXH3_64bits(payload, frame->payload_bytes) == frame->checksum)
		return 0;
	return fail(failure, EBADMSG, "frame-checksum", NULL, "the link or the memory of a machine changes data",
		    "%u pages for address 0x%llx arrived damaged", frame->pages, (unsigned long long)frame->address);
}

int frame_unpack(const struct frame *frame, const void *payload, void *pages, struct failure *failure)
{
	size_t bytes = (size_t)frame->pages * FRAME_PAGE_BYTES, unpacked = 0;

	int r = check_payload(frame, payload, failure);
	if (r < 0)
		return r;
	if (frame->codec == FRAME_RAW) {
		memcpy(pages, payload, bytes);
		return 0;
	}
	if (frame->codec == FRAME_LZ4) {
		int count = LZ4_decompress_safe(payload, pages, (int)frame->payload_bytes, (int)bytes);

		unpacked = count < 0 ? 0 : (size_t)count;
	} else {
		unpacked = ZSTD_decompress(pages, bytes, payload, frame->payload_bytes);
	}
	if (unpacked != bytes)
		return fail(failure, EBADMSG, "frame-payload", NULL, NULL, "a block of %u pages cannot be unpacked",
			    frame->pages);
	return 0;
}

int frame_receive_pages(struct stream *stream, const struct frame *frame, void *pages, void *scratch,
			struct failure *failure)
{
	bool raw = frame->codec == FRAME_RAW;

	int r = stream_read_full(stream, raw ? pages : scratch, frame->payload_bytes);
	if (r < 0)
		return stream_fail(stream, r, failure);
	r = raw ? check_payload(frame, pages, failure) : frame_unpack(frame, scratch, pages, failure);
	return r < 0 ? fail_in(failure, "%s", stream_peer(stream)) : 0;
}
