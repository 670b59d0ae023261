/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model: all connections share one link that needs `link_ns` for a byte, and `threads` threads compress at
 * `cost_ns` for a byte each. Compression and the link work at the same time, so a byte of pages takes as long as the
 * slower of the two: max(cost / threads, link · ratio).
 *
 * The link can only be measured while it is the limit. While compression is, all we know is that the link is at least
 * as fast as what went through; the estimate then sinks a little with every measurement, until a cheaper codec is
 * tried again. If that was wrong, the threads block on the link, it is measured, and the choice comes back.
 */
#include "migrate/compression.h"

#include <lz4.h>
#include <string.h>
#include <zstd.h>

#include "base/fd.h"

/* Of the old value in a new one. */
#define SMOOTHING 0.75
/* The link counts as the limit if threads are blocked on it for this part of the time. */
#define LINK_IS_LIMIT 0.5
#define LINK_IS_FREE 0.1
/* How fast an estimate sinks that cannot be checked. */
#define DOUBT 0.97
/* The other codec must be this much better: near the border there is nothing to win by changing to and fro. */
#define CLEARLY_BETTER 0.9

enum { ZSTD_LEVEL = 1, SAMPLE_BYTES = 16 << 10 };

static double byte_ns(const struct compression_model *model, enum frame_codec codec)
{
	double compress = model->cost_ns[codec] / (model->threads ? model->threads : 1);
	double link = model->link_ns * (codec == FRAME_RAW ? 1 : model->ratio[codec]);

	return compress > link ? compress : link;
}

enum frame_codec compression_choose(const struct compression_model *model, uint32_t allowed)
{
	enum frame_codec best = FRAME_RAW;
	double best_ns = byte_ns(model, FRAME_RAW);

	if (!(allowed & (1u << FRAME_RAW)))
		return allowed & (1u << FRAME_LZ4) ? FRAME_LZ4 : FRAME_ZSTD;
	for (enum frame_codec codec = FRAME_LZ4; codec < FRAME_CODEC_COUNT; codec++) {
		double ns = byte_ns(model, codec);

		if (!(allowed & (1u << codec)) || model->cost_ns[codec] <= 0)
			continue;
		if (ns < best_ns * CLEARLY_BETTER) {
			best = codec;
			best_ns = ns;
		}
	}
	return best;
}

static double moved(double old, double new)
{
	return old > 0 ? old * SMOOTHING + new *(1 - SMOOTHING) : new;
}

void compression_learn_codec(struct compression_model *model, enum frame_codec codec, uint64_t raw_bytes,
			     uint64_t packed_bytes, uint64_t ns)
{
	if (!raw_bytes || codec == FRAME_RAW || codec >= FRAME_CODEC_COUNT)
		return;
	model->cost_ns[codec] = moved(model->cost_ns[codec], (double)ns / (double)raw_bytes);
	model->ratio[codec] = moved(model->ratio[codec], (double)packed_bytes / (double)raw_bytes);
}

void compression_learn_link(struct compression_model *model, uint64_t wire_bytes, uint64_t ns, uint64_t blocked_ns)
{
	if (!wire_bytes || !ns)
		return;
	double blocked = (double)blocked_ns / ((double)ns * (model->threads ? model->threads : 1));
	double took_ns = (double)ns / (double)wire_bytes;

	if (blocked >= LINK_IS_LIMIT)
		model->link_ns = moved(model->link_ns, took_ns);
	else if (model->link_ns > took_ns)
		model->link_ns = took_ns;
	if (blocked < LINK_IS_FREE)
		model->link_ns *= DOUBT;
}

/* ---- one thread ---- */

struct compressor {
	ZSTD_CCtx *zstd;
	void *lz4;
};

struct compressor *compressor_new(void)
{
	struct compressor *compressor = xcalloc(1, sizeof(*compressor));

	compressor->lz4 = xcalloc(1, (size_t)LZ4_sizeofState());
	return compressor;
}

void compressor_free(struct compressor **compressor)
{
	if (!*compressor)
		return;
	ZSTD_freeCCtx((*compressor)->zstd);
	free((*compressor)->lz4);
	free(*compressor);
	*compressor = NULL;
}

static size_t pack_zstd(struct compressor *compressor, const void *data, size_t size, void *out, size_t room)
{
	if (!compressor->zstd)
		compressor->zstd = ZSTD_createCCtx();
	if (!compressor->zstd)
		return 0;
	size_t packed = ZSTD_compressCCtx(compressor->zstd, out, room, data, size, ZSTD_LEVEL);
	return ZSTD_isError(packed) ? 0 : packed;
}

size_t compressor_pack(struct compressor *compressor, enum frame_codec codec, const void *data, size_t size, void *out)
{
	size_t room = size - size / 10;

	if (codec == FRAME_ZSTD)
		return pack_zstd(compressor, data, size, out, room);
	if (codec != FRAME_LZ4)
		return 0;
	int packed = LZ4_compress_fast_extState(compressor->lz4, data, out, (int)size, (int)room, 1);
	return packed > 0 ? (size_t)packed : 0;
}

bool compressor_worthwhile(struct compressor *compressor, const void *data, size_t size, void *scratch)
{
	if (size > SAMPLE_BYTES)
		size = SAMPLE_BYTES;
	return compressor_pack(compressor, FRAME_LZ4, data, size, scratch) > 0;
}
