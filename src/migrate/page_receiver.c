/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_receiver.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "migrate/protocol.h"
#include "migrate/stream.h"

struct receiver_connection {
	struct page_receiver *receiver;
	struct stream *stream;
	pthread_t thread;
	bool started, joined;
	uint8_t *scratch;
	uint64_t received; /* frames that are in place */
	uint64_t sent;     /* frames of the other direction */
};

struct page_receiver {
	const struct page_receiver_operations *operations;
	void *context;
	int event_fd;
	pthread_mutex_t lock;
	struct failure failure;
	bool ending;
	struct page_receiver_statistics statistics;
	size_t count;
	struct receiver_connection connections[MIGRATE_MAX_CONNECTIONS];
};

/* ---- receiving ---- */

static int take_pages(struct receiver_connection *connection, const struct frame *frame, struct failure *failure)
{
	const struct page_receiver_operations *operations = connection->receiver->operations;
	void *context = connection->receiver->context;
	void *memory;

	int r = operations->place(context, frame->space_kind, frame->space_id, frame->address, frame->pages, failure,
				  &memory);
	if (r < 0)
		return r;
	r = frame_receive_pages(connection->stream, frame, memory, connection->scratch, failure);
	if (r < 0 || !operations->done)
		return r;
	return operations->done(context, frame->space_kind, frame->space_id, frame->address, frame->pages, memory,
				failure);
}

static int take_frame(struct receiver_connection *connection, const struct frame *frame, struct failure *failure)
{
	struct page_receiver *receiver = connection->receiver;
	const struct page_receiver_operations *operations = receiver->operations;

	switch (frame->type) {
	case FRAME_PAGES:
		return take_pages(connection, frame, failure);
	case FRAME_ZERO:
		return operations->zero(receiver->context, frame->space_kind, frame->space_id, frame->address,
					frame->pages, failure);
	case FRAME_DROP:
		return operations->drop(receiver->context, frame->space_kind, frame->space_id, frame->address,
					frame->pages, failure);
	case FRAME_BARRIER:
		return 0;
	default:
		return fail(failure, EPROTO, "frame-type", stream_peer(connection->stream), NULL,
			    "a frame arrived that only this side sends");
	}
}

static void count_frame(struct receiver_connection *connection, const struct frame *frame)
{
	struct page_receiver_statistics *statistics = &connection->receiver->statistics;

	pthread_mutex_lock(&connection->receiver->lock);
	if (frame->type == FRAME_PAGES) {
		statistics->pages += frame->pages;
		statistics->raw_bytes += (uint64_t)frame->pages * FRAME_PAGE_BYTES;
	}
	if (frame->type == FRAME_ZERO)
		statistics->zero_pages += frame->pages;
	if (frame->type == FRAME_DROP)
		statistics->dropped_pages += frame->pages;
	statistics->wire_bytes += FRAME_HEADER_BYTES + frame->payload_bytes;
	pthread_mutex_unlock(&connection->receiver->lock);
}

/* All frames up to the barrier, which was the last one, are in place. */
static int acknowledge(struct receiver_connection *connection, struct failure *failure)
{
	struct frame frame = {
		.type = FRAME_ACK,
		.address = connection->received - 1,
		.sequence = connection->sent++,
	};
	int r = frame_send(connection->stream, &frame, NULL);

	return r < 0 ? stream_fail(connection->stream, r, failure) : 0;
}

static int receive_one(struct receiver_connection *connection, struct failure *failure)
{
	struct frame frame;

	int r = frame_receive(connection->stream, connection->received, failure, &frame);
	if (r < 0)
		return r;
	r = take_frame(connection, &frame, failure);
	if (r < 0)
		return r;
	connection->received++;
	count_frame(connection, &frame);
	return frame.type == FRAME_BARRIER ? acknowledge(connection, failure) : 0;
}

/* The first failure stops the other connections. */
static void note_failure(struct page_receiver *receiver, const struct failure *failure)
{
	pthread_mutex_lock(&receiver->lock);
	bool first = !failure_is_set(&receiver->failure) && !receiver->ending;
	if (first)
		receiver->failure = *failure;
	pthread_mutex_unlock(&receiver->lock);
	for (size_t i = 0; first && i < receiver->count; i++)
		stream_shutdown(receiver->connections[i].stream);
}

static void *run(void *argument)
{
	struct receiver_connection *connection = argument;
	struct page_receiver *receiver = connection->receiver;
	struct failure failure = {};
	const uint64_t one = 1;
	int r;

	do
		r = receive_one(connection, &failure);
	while (!r);
	if (failure_is_set(&failure))
		note_failure(receiver, &failure);
	write_full(receiver->event_fd, &one, sizeof(one));
	return NULL;
}

/* ---- making and ending ---- */

static int start_connection(struct receiver_connection *connection, struct failure *failure)
{
	void *scratch = mmap(NULL, FRAME_MAX_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (scratch == MAP_FAILED)
		return fail_errno(failure, errno, "memory", "page receiver", NULL, "no memory for buffers");
	connection->scratch = scratch;
	int r = -pthread_create(&connection->thread, NULL, run, connection);
	if (r < 0)
		return fail_errno(failure, r, "thread", "page receiver", NULL, "a thread cannot be started");
	connection->started = true;
	return 0;
}

int page_receiver_new(struct stream *const *streams, size_t stream_count,
		      const struct page_receiver_operations *operations, void *context, struct failure *failure,
		      struct page_receiver **ret_receiver)
{
	sigset_t all, old;

	if (!stream_count || stream_count > MIGRATE_MAX_CONNECTIONS)
		return fail(failure, EINVAL, "connections", "page receiver", NULL, "%zu connections are not possible",
			    stream_count);
	struct page_receiver *receiver = xcalloc(1, sizeof(*receiver));
	receiver->operations = operations;
	receiver->context = context;
	receiver->event_fd = eventfd(0, EFD_CLOEXEC);
	receiver->count = stream_count;
	pthread_mutex_init(&receiver->lock, NULL);
	for (size_t i = 0; i < stream_count; i++) {
		receiver->connections[i].receiver = receiver;
		receiver->connections[i].stream = streams[i];
	}
	int r = receiver->event_fd >= 0
			? 0
			: fail_errno(failure, errno, "descriptors", "page receiver", NULL, "no descriptor is left");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (size_t i = 0; i < stream_count && !r; i++)
		r = start_connection(&receiver->connections[i], failure);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0) {
		page_receiver_free(&receiver);
		return r;
	}
	*ret_receiver = receiver;
	return 0;
}

int page_receiver_failure(struct page_receiver *receiver, struct failure *failure)
{
	int r = 0;

	pthread_mutex_lock(&receiver->lock);
	if (failure_is_set(&receiver->failure)) {
		r = -receiver->failure.error;
		if (!failure_is_set(failure))
			*failure = receiver->failure;
	}
	pthread_mutex_unlock(&receiver->lock);
	return r;
}

void page_receiver_statistics(struct page_receiver *receiver, struct page_receiver_statistics *ret_statistics)
{
	pthread_mutex_lock(&receiver->lock);
	*ret_statistics = receiver->statistics;
	pthread_mutex_unlock(&receiver->lock);
}

int page_receiver_fd(const struct page_receiver *receiver)
{
	return receiver->event_fd;
}

int page_receiver_join(struct page_receiver *receiver, struct failure *failure)
{
	for (size_t i = 0; i < receiver->count; i++) {
		struct receiver_connection *connection = &receiver->connections[i];

		if (connection->started && !connection->joined)
			pthread_join(connection->thread, NULL);
		connection->joined = true;
	}
	return page_receiver_failure(receiver, failure);
}

void page_receiver_free(struct page_receiver **receiver)
{
	struct page_receiver *ended = *receiver;
	struct failure ignored = {};

	if (!ended)
		return;
	*receiver = NULL;
	pthread_mutex_lock(&ended->lock);
	ended->ending = true;
	pthread_mutex_unlock(&ended->lock);
	for (size_t i = 0; i < ended->count; i++)
		if (ended->connections[i].started)
			stream_shutdown(ended->connections[i].stream);
	page_receiver_join(ended, &ignored);
	for (size_t i = 0; i < ended->count; i++)
		if (ended->connections[i].scratch)
			munmap(ended->connections[i].scratch, FRAME_MAX_BYTES);
	if (ended->event_fd >= 0)
		close(ended->event_fd);
	pthread_mutex_destroy(&ended->lock);
	free(ended);
}
