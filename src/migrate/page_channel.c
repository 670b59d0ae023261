/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_channel.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "migrate/page_channel_state.h"
#include "migrate/stream.h"

/* Ranges without data that may wait: enough for any burst, little enough for the memory. */
enum { QUEUE_LIMIT = 1 << 14 };
#define MAX_PAGES (UINT64_C(1) << 35)

/* The lock is held. */
static void note_failure(struct page_channel *channel, const struct failure *failure)
{
	if (failure_is_set(&channel->failure))
		return;
	channel->failure = *failure;
	pthread_cond_broadcast(&channel->work);
	pthread_cond_broadcast(&channel->changed);
	for (size_t i = 0; i < channel->options.stream_count; i++)
		stream_shutdown(channel->options.streams[i]);
}

void page_channel_fail(struct page_channel *channel, const struct failure *failure)
{
	pthread_mutex_lock(&channel->lock);
	note_failure(channel, failure);
	pthread_mutex_unlock(&channel->lock);
}

void page_channel_free_buffer(struct page_channel *channel, struct page_buffer *buffer)
{
	buffer->next = channel->free_buffers;
	channel->free_buffers = buffer;
	pthread_cond_broadcast(&channel->changed);
}

/* ---- making and ending ---- */

static int make_buffers(struct page_channel *channel, struct failure *failure)
{
	channel->buffer_count = 2 * channel->options.stream_count + 4;
	void *memory = mmap(NULL, channel->buffer_count * FRAME_MAX_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return fail_errno(failure, errno, "memory", "page channel", NULL, "no memory for buffers");
	channel->buffer_memory = memory;
	channel->buffers = xcalloc(channel->buffer_count, sizeof(*channel->buffers));
	for (size_t i = 0; i < channel->buffer_count; i++) {
		channel->buffers[i].data = channel->buffer_memory + i * FRAME_MAX_BYTES;
		page_channel_free_buffer(channel, &channel->buffers[i]);
	}
	return 0;
}

static int start_connection(struct page_channel *channel, size_t index, struct failure *failure)
{
	struct page_connection *connection = &channel->connections[index];

	connection->channel = channel;
	connection->stream = channel->options.streams[index];
	connection->compressor = compressor_new();
	int r = page_batch_init(&connection->batch);
	if (!r)
		r = -pthread_create(&connection->sender, NULL, page_sender_run, connection);
	connection->sender_started = !r;
	if (!r) {
		r = -pthread_create(&connection->reader, NULL, page_reader_run, connection);
		connection->reader_started = !r;
	}
	if (r < 0)
		return fail_errno(failure, r, "thread", "page channel", NULL, "a thread cannot be started");
	return 0;
}

static void init_channel(struct page_channel *channel, const struct page_channel_options *options)
{
	pthread_condattr_t attributes;

	channel->options = *options;
	channel->options.streams = xmemdup(options->streams, options->stream_count * sizeof(*options->streams));
	channel->options.codecs |= 1u << FRAME_RAW;
	if (!options->patience_ns)
		channel->options.patience_ns = PAGE_CHANNEL_PATIENCE_NS;
	channel->model.threads = (unsigned)options->stream_count;
	channel->window_start_ns = channel->rate_start_ns = clock_now_ns();
	bandwidth_init(&channel->bandwidth, options->bytes_per_second, channel->window_start_ns);
	page_queue_init(&channel->queue);
	pthread_mutex_init(&channel->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&channel->work, &attributes);
	pthread_cond_init(&channel->changed, &attributes);
	pthread_condattr_destroy(&attributes);
}

int page_channel_new(const struct page_channel_options *options, struct failure *failure,
		     struct page_channel **ret_channel)
{
	sigset_t all, old;

	if (!options->stream_count || options->stream_count > MIGRATE_MAX_CONNECTIONS)
		return fail(failure, EINVAL, "connections", "page channel", NULL, "%zu connections are not possible",
			    options->stream_count);
	struct page_channel *channel = xcalloc(1, sizeof(*channel));
	init_channel(channel, options);
	int r = make_buffers(channel, failure);
	/* Signals are for the thread that started all this. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (size_t i = 0; i < options->stream_count && !r; i++)
		r = start_connection(channel, i, failure);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0) {
		page_channel_free(&channel);
		return r;
	}
	*ret_channel = channel;
	return 0;
}

static void end_connection(struct page_connection *connection)
{
	if (connection->sender_started)
		pthread_join(connection->sender, NULL);
	if (connection->stream)
		stream_shutdown(connection->stream);
	if (connection->reader_started)
		pthread_join(connection->reader, NULL);
	page_batch_destroy(&connection->batch);
	compressor_free(&connection->compressor);
}

void page_channel_free(struct page_channel **channel)
{
	struct page_channel *ended = *channel;
	struct queued_piece piece;

	if (!ended)
		return;
	*channel = NULL;
	pthread_mutex_lock(&ended->lock);
	ended->ending = true;
	pthread_cond_broadcast(&ended->work);
	pthread_mutex_unlock(&ended->lock);
	for (size_t i = 0; i < ended->options.stream_count; i++)
		end_connection(&ended->connections[i]);
	while (page_queue_take(&ended->queue, &piece))
		continue;
	if (ended->buffer_memory)
		munmap(ended->buffer_memory, ended->buffer_count * FRAME_MAX_BYTES);
	free(ended->buffers);
	free((void *)ended->options.streams);
	pthread_cond_destroy(&ended->work);
	pthread_cond_destroy(&ended->changed);
	pthread_mutex_destroy(&ended->lock);
	free(ended);
}

void page_channel_cancel(struct page_channel *channel)
{
	struct failure cancelled = {};

	fail(&cancelled, ECANCELED, "cancelled", NULL, NULL, "cancelled");
	page_channel_fail(channel, &cancelled);
}

/* ---- using ---- */

/* The lock is held. A failure of the caller's own must not hide the first one: copy it only if there is none. */
static int current_failure(const struct page_channel *channel, struct failure *failure)
{
	if (!failure_is_set(&channel->failure))
		return 0;
	if (!failure_is_set(failure))
		*failure = channel->failure;
	return -channel->failure.error;
}

int page_channel_failure(struct page_channel *channel, struct failure *failure)
{
	pthread_mutex_lock(&channel->lock);
	int r = current_failure(channel, failure);
	pthread_mutex_unlock(&channel->lock);
	return r;
}

static uint64_t delivered_bytes(const struct page_channel *channel)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < channel->options.stream_count; i++)
		bytes += stream_delivered(channel->options.streams[i]);
	return bytes;
}

/*
 * Waits for a change. The lock is held. A link that is cut fails by itself; one whose other side is there and takes
 * nothing does not.
 */
static void wait_for_change(struct page_channel *channel)
{
	uint64_t before = delivered_bytes(channel), end_ns = clock_now_ns() + channel->options.patience_ns;
	const struct timespec end = {(time_t)(end_ns / 1000000000), (long)(end_ns % 1000000000)};
	struct failure failure = {};

	if (pthread_cond_timedwait(&channel->changed, &channel->lock, &end) != ETIMEDOUT || channel->limited ||
	    delivered_bytes(channel) != before)
		return;
	fail(&failure, ETIMEDOUT, "link-timeout", stream_peer(channel->options.streams[0]),
	     "is criu receive stopped there, or the machine out of memory?",
	     "the other side has taken no memory for %llu s",
	     (unsigned long long)(channel->options.patience_ns / 1000000000));
	note_failure(channel, &failure);
}

int page_channel_buffer(struct page_channel *channel, struct failure *failure, struct page_buffer **ret_buffer)
{
	int r;

	pthread_mutex_lock(&channel->lock);
	while (!(r = current_failure(channel, failure)) && !channel->free_buffers)
		wait_for_change(channel);
	if (!r) {
		*ret_buffer = channel->free_buffers;
		channel->free_buffers = channel->free_buffers->next;
	}
	pthread_mutex_unlock(&channel->lock);
	return r;
}

void page_channel_return(struct page_channel *channel, struct page_buffer *buffer)
{
	pthread_mutex_lock(&channel->lock);
	page_channel_free_buffer(channel, buffer);
	pthread_mutex_unlock(&channel->lock);
}

static int put(struct page_channel *channel, const struct queued_piece *piece, struct failure *failure)
{
	int r;

	pthread_mutex_lock(&channel->lock);
	while (!(r = current_failure(channel, failure)) && channel->queue.count >= QUEUE_LIMIT)
		wait_for_change(channel);
	if (!r) {
		page_queue_put(&channel->queue, piece);
		pthread_cond_signal(&channel->work);
	} else if (piece->buffer) {
		page_channel_free_buffer(channel, piece->buffer);
	}
	pthread_mutex_unlock(&channel->lock);
	return r;
}

int page_channel_submit(struct page_channel *channel, struct page_buffer *buffer, enum space_kind kind,
			uint32_t space_id, uint64_t address, size_t bytes, struct failure *failure)
{
	const struct queued_piece piece = {
		.type = FRAME_PAGES,
		.space_kind = kind,
		.space_id = space_id,
		.address = address,
		.pages = bytes / FRAME_PAGE_BYTES,
		.buffer = buffer,
	};

	if (!bytes || bytes % FRAME_PAGE_BYTES || bytes > FRAME_MAX_BYTES || address % FRAME_PAGE_BYTES) {
		page_channel_return(channel, buffer);
		return fail(failure, EINVAL, "piece", "page channel", NULL, "%zu bytes at 0x%llx are no whole pages",
			    bytes, (unsigned long long)address);
	}
	return put(channel, &piece, failure);
}

int page_channel_send(struct page_channel *channel, enum space_kind kind, uint32_t space_id, uint64_t address,
		      const void *data, size_t bytes, struct failure *failure)
{
	for (size_t done = 0; done < bytes;) {
		size_t piece = bytes - done < FRAME_MAX_BYTES ? bytes - done : FRAME_MAX_BYTES;
		struct page_buffer *buffer;

		int r = page_channel_buffer(channel, failure, &buffer);
		if (r < 0)
			return r;
		memcpy(buffer->data, (const uint8_t *)data + done, piece);
		r = page_channel_submit(channel, buffer, kind, space_id, address + done, piece, failure);
		if (r < 0)
			return r;
		done += piece;
	}
	return 0;
}

static int put_plain(struct page_channel *channel, enum frame_type type, enum space_kind kind, uint32_t space_id,
		     uint64_t address, uint64_t pages, struct failure *failure)
{
	const struct queued_piece piece = {
		.type = type, .space_kind = kind, .space_id = space_id, .address = address, .pages = pages};

	if (!pages || pages > MAX_PAGES || address % FRAME_PAGE_BYTES)
		return fail(failure, EINVAL, "piece", "page channel", NULL, "%llu pages at 0x%llx are no range",
			    (unsigned long long)pages, (unsigned long long)address);
	return put(channel, &piece, failure);
}

int page_channel_zero(struct page_channel *channel, enum space_kind kind, uint32_t space_id, uint64_t address,
		      uint64_t pages, struct failure *failure)
{
	return put_plain(channel, FRAME_ZERO, kind, space_id, address, pages, failure);
}

int page_channel_drop(struct page_channel *channel, enum space_kind kind, uint32_t space_id, uint64_t address,
		      uint64_t pages, struct failure *failure)
{
	return put_plain(channel, FRAME_DROP, kind, space_id, address, pages, failure);
}

static bool barrier_is_done(const struct page_channel *channel, uint64_t number)
{
	for (size_t i = 0; i < channel->options.stream_count; i++)
		if (channel->connections[i].barrier_done < number)
			return false;
	return true;
}

int page_channel_barrier(struct page_channel *channel, struct failure *failure)
{
	int r;

	pthread_mutex_lock(&channel->lock);
	uint64_t number = ++channel->barrier;
	pthread_cond_broadcast(&channel->work);
	while (!(r = current_failure(channel, failure)) && !barrier_is_done(channel, number))
		wait_for_change(channel);
	pthread_mutex_unlock(&channel->lock);
	return r;
}

void page_channel_set_bandwidth(struct page_channel *channel, uint64_t bytes_per_second)
{
	pthread_mutex_lock(&channel->lock);
	bandwidth_set(&channel->bandwidth, bytes_per_second, clock_now_ns());
	channel->bandwidth_generation++;
	pthread_cond_broadcast(&channel->work);
	pthread_mutex_unlock(&channel->lock);
}

void page_channel_statistics(struct page_channel *channel, struct page_channel_statistics *ret_statistics)
{
	pthread_mutex_lock(&channel->lock);
	*ret_statistics = channel->statistics;
	pthread_mutex_unlock(&channel->lock);
}
