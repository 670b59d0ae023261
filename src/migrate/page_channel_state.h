/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a page channel, shared by page_channel.c (its users) and page_sender.c (its threads). */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "migrate/bandwidth.h"
#include "migrate/compression.h"
#include "migrate/page_batch.h"
#include "migrate/page_channel.h"
#include "migrate/page_queue.h"
#include "migrate/protocol.h"

struct page_connection {
	struct page_channel *channel;
	struct stream *stream;
	pthread_t sender, reader;
	bool sender_started, reader_started;
	struct compressor *compressor; /* the sender's own, like the batch */
	struct page_batch batch;
	/* Below: under the channel's lock */
	uint64_t sequence;         /* of the next frame to send */
	uint64_t acknowledged;     /* frames of which the other side said that they are in place */
	uint64_t barrier_sent;     /* number of the last barrier */
	uint64_t barrier_sequence; /* its frame */
	uint64_t barrier_done;     /* number of the last barrier that was acknowledged */
};

struct page_channel {
	struct page_channel_options options;
	pthread_mutex_t lock;
	pthread_cond_t work;    /* for senders: something is in the queue, a barrier, the end, another bandwidth */
	pthread_cond_t changed; /* for users: a buffer is free, the queue is shorter, a barrier is done, failure */
	struct failure failure;
	bool ending;
	struct page_queue queue;
	struct page_buffer *buffers, *free_buffers;
	size_t buffer_count;
	uint8_t *buffer_memory;
	uint64_t barrier; /* number of the last one */
	struct bandwidth bandwidth;
	uint64_t bandwidth_generation;
	unsigned limited; /* connections that wait for --bandwidth now */
	struct compression_model model;
	uint64_t pieces;
	struct page_channel_statistics statistics;
	/* One measurement of the link. */
	uint64_t window_start_ns, window_wire_bytes, window_blocked_ns;
	bool window_idle;
	uint64_t rate_start_ns, rate_start_bytes;
	struct page_connection connections[MIGRATE_MAX_CONNECTIONS];
};

/* What the threads run; the argument is their struct page_connection. */
void *page_sender_run(void *connection);
void *page_reader_run(void *connection);
/* Notes the first failure, wakes everybody and shuts the streams down. Takes the lock. */
void page_channel_fail(struct page_channel *channel, const struct failure *failure);
/* Gives a buffer back. The lock is held. */
void page_channel_free_buffer(struct page_channel *channel, struct page_buffer *buffer);
