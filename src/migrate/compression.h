/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which codec a block of pages gets. Compressing pays when the link is slower than the processor: the choice compares,
 * for each codec, the time to compress a byte with the time its remains need on the link, both measured on the way.
 * compression_choose() is pure, so that tests can feed it any machine and any link.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/frames.h"

/* What was measured, per codec and for the link; one for all connections of a channel. */
struct compression_model {
	double cost_ns[FRAME_CODEC_COUNT]; /* of one thread to compress a byte of pages; 0 = not measured */
	double ratio[FRAME_CODEC_COUNT];   /* compressed / raw; FRAME_RAW: 1 */
	double link_ns;                    /* the link needs for a byte, all connections together; 0 = not measured */
	unsigned threads;                  /* that compress at the same time */
};

/*
 * The codec that moves a byte of pages soonest. @allowed: bits 1 << enum frame_codec. With nothing measured: raw, if
 * allowed.
 */
enum frame_codec compression_choose(const struct compression_model *model, uint32_t allowed);

/* Moves the measured values towards a new measurement. */
void compression_learn_codec(struct compression_model *model, enum frame_codec codec, uint64_t raw_bytes,
			     uint64_t packed_bytes, uint64_t ns);
/*
 * @wire_bytes left in @ns by all connections, of which the threads were blocked on the link for @blocked_ns together.
 * If they hardly were, the link is at least that fast; if they mostly were, it is that fast.
 */
void compression_learn_link(struct compression_model *model, uint64_t wire_bytes, uint64_t ns, uint64_t blocked_ns);

/* State of one compressing thread. */
struct compressor;
struct compressor *compressor_new(void);
void compressor_free(struct compressor **compressor);
/*
 * Compresses @size bytes (at most FRAME_MAX_BYTES) into @out of the same size. Returns the compressed size, or 0 if
 * less than a tenth would be saved: send it raw.
 */
size_t compressor_pack(struct compressor *compressor, enum frame_codec codec, const void *data, size_t size, void *out);
/* Tries the first bytes of a run: false if they hardly compress, so that the whole run need not be tried. */
bool compressor_worthwhile(struct compressor *compressor, const void *data, size_t size, void *scratch);
