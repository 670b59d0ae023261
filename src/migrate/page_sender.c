/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads of a page channel. A sender takes a piece, makes its frames without holding the lock, and sends them in
 * one call; once the queue is empty it sends the barrier, if one is wanted. A reader takes acknowledgements, and is the
 * first to notice when the other side is gone.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/fd.h"
#include "migrate/page_channel_state.h"
#include "migrate/stream.h"

enum {
	LINK_WINDOW_NS = 50000000,
	RATE_WINDOW_NS = 500000000,
	PROBE_EVERY_PIECES = 64, /* other codecs are tried */
	PROBE_BYTES = 64 << 10,
};

/* ---- what is measured; the lock is held ---- */

static void close_window(struct page_channel *channel, uint64_t now_ns)
{
	struct page_channel_statistics *statistics = &channel->statistics;
	uint64_t passed_ns = now_ns - channel->window_start_ns;

	if (passed_ns < LINK_WINDOW_NS)
		return;
	if (!channel->window_idle)
		compression_learn_link(&channel->model, statistics->wire_bytes - channel->window_wire_bytes, passed_ns,
				       statistics->blocked_ns - channel->window_blocked_ns);
	channel->window_start_ns = now_ns;
	channel->window_wire_bytes = statistics->wire_bytes;
	channel->window_blocked_ns = statistics->blocked_ns;
	channel->window_idle = false;
	passed_ns = now_ns - channel->rate_start_ns;
	if (passed_ns < RATE_WINDOW_NS)
		return;
	statistics->wire_bytes_per_second =
		(uint64_t)((double)(statistics->wire_bytes - channel->rate_start_bytes) * 1e9 / (double)passed_ns);
	channel->rate_start_ns = now_ns;
	channel->rate_start_bytes = statistics->wire_bytes;
}

static void count_frames(struct page_channel *channel, const struct page_batch *batch)
{
	struct page_channel_statistics *statistics = &channel->statistics;

	for (size_t i = 0; i < batch->frame_count; i++) {
		const struct frame *frame = &batch->frames[i];
		uint64_t bytes = (uint64_t)frame->pages * FRAME_PAGE_BYTES;

		if (frame->type == FRAME_ZERO)
			statistics->zero_pages += frame->pages;
		if (frame->type == FRAME_DROP)
			statistics->dropped_pages += frame->pages;
		if (frame->type != FRAME_PAGES)
			continue;
		statistics->pages += frame->pages;
		statistics->raw_bytes += bytes;
		statistics->codec_bytes[frame->codec] += bytes;
	}
	statistics->wire_bytes += batch->wire_bytes;
	statistics->compress_ns += batch->compress_ns;
}

/* Which codec the next piece gets, and whether the others are to be measured on it. */
static enum frame_codec choose_codec(struct page_channel *channel, bool *ret_probe)
{
	static const enum frame_codec fixed[] = {
		[COMPRESS_AUTO] = FRAME_RAW,
		[COMPRESS_NONE] = FRAME_RAW,
		[COMPRESS_LZ4] = FRAME_LZ4,
		[COMPRESS_ZSTD] = FRAME_ZSTD,
	};
	uint32_t allowed = channel->options.codecs;

	*ret_probe = false;
	if (channel->options.compress != COMPRESS_AUTO) {
		enum frame_codec codec = fixed[channel->options.compress];

		return allowed & (1u << codec) ? codec : FRAME_RAW;
	}
	*ret_probe = allowed != 1u << FRAME_RAW && channel->pieces++ % PROBE_EVERY_PIECES == 0;
	return compression_choose(&channel->model, allowed);
}

/* ---- sending ---- */

static void wait_for_bandwidth(struct page_channel *channel, uint64_t bytes)
{
	pthread_mutex_lock(&channel->lock);
	uint64_t start_ns = clock_now_ns();
	uint64_t wait_ns = bandwidth_take(&channel->bandwidth, bytes, start_ns);
	uint64_t generation = channel->bandwidth_generation, end_ns = start_ns + wait_ns;
	struct timespec end = {(time_t)(end_ns / 1000000000), (long)(end_ns % 1000000000)};

	channel->limited += wait_ns > 0;
	while (wait_ns && !failure_is_set(&channel->failure) && generation == channel->bandwidth_generation)
		if (pthread_cond_timedwait(&channel->work, &channel->lock, &end) == ETIMEDOUT)
			break;
	channel->limited -= wait_ns > 0;
	if (wait_ns) {
		channel->statistics.limited_ns += clock_now_ns() - start_ns;
		/* A limit by wish says nothing about the link, but sending less still pays: it counts as blocked. */
		channel->statistics.blocked_ns += clock_now_ns() - start_ns;
		/* A signal for new work may have come here. */
		pthread_cond_signal(&channel->work);
	}
	pthread_mutex_unlock(&channel->lock);
}

/* Sends what is in the batch. Returns 0 or a failure. */
static int send_batch(struct page_connection *connection, struct failure *failure)
{
	struct page_channel *channel = connection->channel;
	struct page_batch *batch = &connection->batch;
	uint64_t waited_ns = connection->stream->write_wait_ns;

	pthread_mutex_lock(&channel->lock);
	connection->sequence += batch->frame_count;
	pthread_mutex_unlock(&channel->lock);
	wait_for_bandwidth(channel, batch->wire_bytes);
	int r = stream_writev(connection->stream, batch->parts, batch->part_count);
	if (r < 0)
		return stream_fail(connection->stream, r, failure);
	pthread_mutex_lock(&channel->lock);
	channel->statistics.blocked_ns += connection->stream->write_wait_ns - waited_ns;
	count_frames(channel, batch);
	close_window(channel, clock_now_ns());
	pthread_mutex_unlock(&channel->lock);
	return 0;
}

/* Measures the codecs on the beginning of a piece. */
static void probe_codecs(struct page_connection *connection, const struct queued_piece *piece)
{
	struct page_channel *channel = connection->channel;
	size_t bytes = piece->pages * FRAME_PAGE_BYTES;

	if (bytes > PROBE_BYTES)
		bytes = PROBE_BYTES;
	for (enum frame_codec codec = FRAME_LZ4; codec < FRAME_CODEC_COUNT; codec++) {
		if (!(channel->options.codecs & (1u << codec)))
			continue;
		uint64_t start_ns = clock_now_ns();
		size_t packed = compressor_pack(connection->compressor, codec, piece->buffer->data, bytes,
						connection->batch.scratch);
		uint64_t took_ns = clock_now_ns() - start_ns;
		pthread_mutex_lock(&channel->lock);
		compression_learn_codec(&channel->model, codec, bytes, packed ? packed : bytes, took_ns);
		pthread_mutex_unlock(&channel->lock);
	}
}

static int send_piece(struct page_connection *connection, const struct queued_piece *piece, enum frame_codec codec,
		      bool probe, struct failure *failure)
{
	struct page_channel *channel = connection->channel;
	struct page_batch *batch = &connection->batch;

	if (probe && piece->buffer)
		probe_codecs(connection, piece);
	page_batch_clear(batch);
	page_batch_fill(batch, piece, piece->buffer ? piece->buffer->data : NULL, connection->compressor, codec,
			connection->sequence);
	int r = send_batch(connection, failure);
	pthread_mutex_lock(&channel->lock);
	if (batch->tried_bytes)
		compression_learn_codec(&channel->model, codec, batch->tried_bytes, batch->packed_bytes,
					batch->compress_ns);
	if (piece->buffer)
		page_channel_free_buffer(channel, piece->buffer);
	pthread_mutex_unlock(&channel->lock);
	return r;
}

static int send_barrier(struct page_connection *connection, uint64_t number, struct failure *failure)
{
	page_batch_clear(&connection->batch);
	page_batch_add_plain(&connection->batch, FRAME_BARRIER, number, connection->sequence);
	return send_batch(connection, failure);
}

enum sender_work { WORK_PIECE, WORK_BARRIER, WORK_END };

/* Waits for something to do. */
static enum sender_work next_work(struct page_connection *connection, struct queued_piece *piece,
				  enum frame_codec *codec, bool *probe)
{
	struct page_channel *channel = connection->channel;
	enum sender_work work;

	pthread_mutex_lock(&channel->lock);
	for (;;) {
		if (failure_is_set(&channel->failure) || channel->ending) {
			work = WORK_END;
			break;
		}
		if (page_queue_take(&channel->queue, piece)) {
			*codec = choose_codec(channel, probe);
			work = WORK_PIECE;
			pthread_cond_broadcast(&channel->changed);
			break;
		}
		if (connection->barrier_sent < channel->barrier) {
			connection->barrier_sent = channel->barrier;
			connection->barrier_sequence = connection->sequence;
			work = WORK_BARRIER;
			break;
		}
		channel->window_idle = true;
		pthread_cond_wait(&channel->work, &channel->lock);
	}
	pthread_mutex_unlock(&channel->lock);
	return work;
}

void *page_sender_run(void *argument)
{
	struct page_connection *connection = argument;
	struct failure failure = {};
	struct queued_piece piece;
	enum frame_codec codec = FRAME_RAW;
	bool probe = false;
	int r = 0;

	while (!r) {
		switch (next_work(connection, &piece, &codec, &probe)) {
		case WORK_PIECE:
			r = send_piece(connection, &piece, codec, probe, &failure);
			break;
		case WORK_BARRIER:
			r = send_barrier(connection, connection->barrier_sent, &failure);
			break;
		case WORK_END:
			return NULL;
		}
	}
	page_channel_fail(connection->channel, &failure);
	return NULL;
}

/* ---- reading ---- */

static int take_ack(struct page_connection *connection, const struct frame *frame, struct failure *failure)
{
	struct page_channel *channel = connection->channel;
	int r = 0;

	pthread_mutex_lock(&channel->lock);
	if (frame->address >= connection->sequence || frame->address + 1 < connection->acknowledged)
		r = fail(failure, EPROTO, "frame-acknowledgement", stream_peer(connection->stream), NULL,
			 "frame %llu is acknowledged, which was not sent", (unsigned long long)frame->address);
	else
		connection->acknowledged = frame->address + 1;
	if (!r && connection->barrier_sent > connection->barrier_done &&
	    connection->acknowledged > connection->barrier_sequence) {
		connection->barrier_done = connection->barrier_sent;
		pthread_cond_broadcast(&channel->changed);
	}
	pthread_mutex_unlock(&channel->lock);
	return r;
}

static int take_frame(struct page_connection *connection, const struct frame *frame, struct failure *failure)
{
	if (frame->type == FRAME_ACK)
		return take_ack(connection, frame, failure);
	return fail(failure, EPROTO, "frame-type", stream_peer(connection->stream), NULL,
		    "a frame arrived that only this side sends");
}

void *page_reader_run(void *argument)
{
	struct page_connection *connection = argument;
	struct page_channel *channel = connection->channel;
	struct failure failure = {};
	struct frame frame;
	uint64_t sequence = 0;
	int r;

	do
		r = frame_receive(connection->stream, sequence++, &failure, &frame)
			    ?: take_frame(connection, &frame, &failure);
	while (!r);
	pthread_mutex_lock(&channel->lock);
	bool ending = channel->ending;
	pthread_mutex_unlock(&channel->lock);
	if (ending)
		return NULL;
	if (!failure_is_set(&failure))
		stream_fail(connection->stream, r, &failure);
	page_channel_fail(channel, &failure);
	return NULL;
}
