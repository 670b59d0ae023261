/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a task waits for goes over a connection of its own; everything else takes turns on the others, of which each has
 * a few requests on its way, so that the link is never idle.
 */
#include "migrate/demand_supply.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/fd.h"
#include "image/image.h"
#include "migrate/frames.h"
#include "migrate/protocol.h"
#include "migrate/stream.h"

enum { WINDOW_PER_STREAM = 3 };

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

/* What of one process's pagemap is missing. */
struct missing {
	uint32_t id;
	struct page_places places;
};

struct demand_stream {
	struct stream *stream;
	uint64_t sent, received; /* frames */
};

struct demand_supply {
	struct page_supply supply;
	struct page_chain *chain;
	uint32_t lazy_source;
	struct missing **missing;
	size_t missing_count, missing_capacity;
	struct demand_stream streams[MIGRATE_MAX_CONNECTIONS + 1];
	size_t stream_count;
	size_t turn; /* of the streams but the first */
	int epoll_fd;
	uint8_t *pages, *scratch; /* FRAME_MAX_BYTES each */
};

static int supply_places(struct page_supply *supply, struct failure *failure, uint32_t id,
			 const struct page_places **ret_places)
{
	struct demand_supply *own = (struct demand_supply *)supply;
	const struct page_places *all;

	for (size_t i = 0; i < own->missing_count; i++)
		if (own->missing[i]->id == id) {
			*ret_places = &own->missing[i]->places;
			return 0;
		}
	/* What is not missing has come already, and is in no file. */
	page_chain_add_store(own->chain, IMAGE_PAGEMAP, id, -1);
	int error = page_chain_read(own->chain, IMAGE_PAGEMAP, id, ADDRESS_SPACE_END, &all);
	if (error == -ENOENT && !failure_is_set(failure))
		return fail(failure, ENOENT, "image-missing", NULL, NULL, "pagemap-%u.img is missing", id);
	if (error < 0)
		return error;
	struct missing *missing = xcalloc(1, sizeof(*missing));
	missing->id = id;
	for (size_t i = 0; i < all->count; i++)
		if (all->items[i].source == own->lazy_source)
			page_places_add(&missing->places, &all->items[i]);
	ARRAY_GROW(own->missing, own->missing_count, own->missing_capacity);
	own->missing[own->missing_count++] = missing;
	*ret_places = &missing->places;
	return 0;
}

static int supply_request(struct page_supply *supply, struct failure *failure, struct postcopy *postcopy, uint32_t id,
			  uint64_t address, uint64_t pages, bool urgent)
{
	struct demand_supply *own = (struct demand_supply *)supply;
	struct demand_stream *to = &own->streams[urgent ? 0 : 1 + own->turn++ % (own->stream_count - 1)];
	struct frame frame = {
		.type = FRAME_REQUEST,
		.space_kind = SPACE_PROCESS,
		.space_id = id,
		.address = address,
		.pages = (uint32_t)pages,
		.sequence = to->sent++,
	};
	int error = frame_send(to->stream, &frame, NULL);

	return error < 0 ? stream_fail(to->stream, error, failure) : 0;
}

static int receive_one(struct demand_supply *own, struct demand_stream *from, struct failure *failure,
		       struct postcopy *postcopy)
{
	struct frame frame;
	int error = frame_receive(from->stream, from->received++, failure, &frame);

	if (error == -ENODATA && !failure_is_set(failure))
		return stream_fail(from->stream, error, failure);
	if (error < 0)
		return error;
	if ((frame.type != FRAME_PAGES && frame.type != FRAME_ZERO) || frame.space_kind != SPACE_PROCESS ||
	    frame.pages > FRAME_MAX_PAGES)
		return fail(failure, EPROTO, "frame-header", stream_peer(from->stream), NULL,
			    "what arrived is no answer to a request for pages");
	if (frame.type == FRAME_PAGES)
		error = frame_receive_pages(from->stream, &frame, own->pages, own->scratch, failure);
	else
		memset(own->pages, 0, (size_t)frame.pages * FRAME_PAGE_BYTES);
	return error ? error : postcopy_deliver(postcopy, frame.space_id, frame.address, frame.pages, own->pages);
}

static int supply_receive(struct page_supply *supply, struct failure *failure, struct postcopy *postcopy)
{
	struct demand_supply *own = (struct demand_supply *)supply;
	struct epoll_event ready[MIGRATE_MAX_CONNECTIONS + 1];
	int error = 0, count = epoll_wait(own->epoll_fd, ready, ARRAY_SIZE(ready), 0);

	for (int i = 0; i < count && !error; i++) {
		struct demand_stream *from = &own->streams[ready[i].data.u32];
		do
			error = receive_one(own, from, failure, postcopy);
		while (!error && stream_pending(from->stream));
	}
	return error;
}

static int supply_fd(struct page_supply *supply)
{
	return ((const struct demand_supply *)supply)->epoll_fd;
}

static const struct page_supply_ops operations = {
	.places = supply_places,
	.request = supply_request,
	.receive = supply_receive,
	.fd = supply_fd,
};

int demand_supply_new(int directory_fd, struct stream *const *streams, size_t stream_count, struct failure *failure,
		      struct page_supply **ret_supply)
{
	struct demand_supply *own = xcalloc(1, sizeof(*own));
	int error = 0;

	own->supply = (struct page_supply){.ops = &operations, .window = WINDOW_PER_STREAM * (stream_count - 1)};
	own->chain = page_chain_new(directory_fd, failure);
	own->lazy_source = page_chain_allow_lazy(own->chain);
	own->pages = xcalloc(1, FRAME_MAX_BYTES);
	own->scratch = xcalloc(1, FRAME_MAX_BYTES);
	own->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	for (; own->stream_count < stream_count && !error; own->stream_count++) {
		struct stream *stream = streams[own->stream_count];
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)own->stream_count};
		own->streams[own->stream_count].stream = stream;
		if (own->epoll_fd < 0 || epoll_ctl(own->epoll_fd, EPOLL_CTL_ADD, stream_fd(stream), &event) < 0)
			error = fail_errno(failure, errno, "epoll", NULL, NULL, "cannot wait for pages");
	}
	if (error < 0) {
		demand_supply_free(&own->supply);
		return error;
	}
	*ret_supply = &own->supply;
	return 0;
}

void demand_supply_free(struct page_supply *supply)
{
	struct demand_supply *own = (struct demand_supply *)supply;

	if (!supply)
		return;
	for (size_t i = 0; i < own->missing_count; i++) {
		free(own->missing[i]->places.items);
		free(own->missing[i]);
	}
	free(own->missing);
	page_chain_free(own->chain);
	close_fd_pointer(&own->epoll_fd);
	free(own->pages);
	free(own->scratch);
	free(own);
}
