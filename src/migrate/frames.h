/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What travels on the connections that carry pages: frames of a fixed header of 48 little-endian bytes and a payload.
 * page_channel.h sends them, page_receiver.h receives them.
 *
 * type     direction            payload, fields
 * PAGES    source → dest.       `pages` pages of (space, address), raw or compressed as one block
 * ZERO     source → dest.       none: the pages hold zeros
 * DROP     source → dest.       none: the pages are gone (MADV_DONTNEED): what was sent before is not valid any more
 * BARRIER  source → dest.       none; address = number of the barrier. Everything before it must be in place before it
 *                               is answered with ACK
 * ACK      dest. → source       none; address = sequence number up to which (inclusive) all frames are in place
 * REQUEST  dest. → source       none; post-copy: the pages are wanted before all others
 *
 * Sequence numbers count the frames of each direction of a connection from 0.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

struct stream;

#define FRAME_MAGIC UINT32_C(0x4d524643) /* "CFRM" */
enum {
	FRAME_HEADER_BYTES = 48,
	FRAME_PAGE_BYTES = 4096,
	FRAME_MAX_BYTES = 1 << 20, /* of pages in a PAGES frame, and of any payload */
	FRAME_MAX_PAGES = FRAME_MAX_BYTES / FRAME_PAGE_BYTES,
};

enum frame_type {
	FRAME_PAGES = 1,
	FRAME_ZERO,
	FRAME_DROP,
	FRAME_BARRIER,
	FRAME_ACK,
	FRAME_REQUEST,
	FRAME_TYPE_COUNT,
};

enum frame_codec { FRAME_RAW, FRAME_LZ4, FRAME_ZSTD, FRAME_CODEC_COUNT };

/* --compress */
enum compress_mode { COMPRESS_AUTO, COMPRESS_NONE, COMPRESS_LZ4, COMPRESS_ZSTD };

/* What an address belongs to. */
enum space_kind {
	SPACE_PROCESS = 1, /* id: migrate_task.space_id, the pid; same number as PAGE_SPACE_PROCESS */
	SPACE_SHMEM = 2,   /* id: migrate_shmem.space_id, the shmid; address = offset; same as PAGE_SPACE_SHMEM */
};

/* The header in memory. */
struct frame {
	enum frame_type type;
	enum frame_codec codec;
	uint32_t space_kind, space_id;
	uint64_t address; /* bytes */
	uint32_t pages;   /* ZERO and DROP: any number; PAGES and REQUEST: at most FRAME_MAX_PAGES */
	uint32_t payload_bytes;
	uint64_t checksum; /* xxh3 of the payload as it travels; 0 without one */
	uint64_t sequence;
};

/* Header to bytes and back. frame_decode() checks every field by itself: returns 0 or a failure "frame-header". */
void frame_encode(const struct frame *frame, uint8_t bytes[FRAME_HEADER_BYTES]);
int frame_decode(const uint8_t bytes[FRAME_HEADER_BYTES], struct failure *failure, struct frame *ret_frame);

/*
 * Sends one frame (checksum is computed here; sequence is the caller's). @payload has frame->payload_bytes.
 * Returns 0 or -errno of the stream.
 */
int frame_send(struct stream *stream, struct frame *frame, const void *payload);
/*
 * Receives a header and checks it, and that its sequence number is @sequence.
 * Returns 0, or a failure; -ENODATA without a failure if the stream ended between two frames.
 */
int frame_receive(struct stream *stream, uint64_t sequence, struct failure *failure, struct frame *ret_frame);

/*
 * Receives the payload of a PAGES frame into @pages (frame->pages pages, at their final place) and checks it.
 * Raw pages go there directly; @scratch (FRAME_MAX_BYTES) holds compressed ones.
 * Returns 0 or a failure ("frame-checksum", "frame-payload", or of the link).
 */
int frame_receive_pages(struct stream *stream, const struct frame *frame, void *pages, void *scratch,
			struct failure *failure);
/* The same from memory, for the fuzzer and tests. */
int frame_unpack(const struct frame *frame, const void *payload, void *pages, struct failure *failure);
