/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/channel_sink.h"

#include <errno.h>

#include "base/fail.h"
#include "migrate/page_channel.h"

_Static_assert((int)SPACE_PROCESS == PAGE_SPACE_PROCESS && (int)SPACE_SHMEM == PAGE_SPACE_SHMEM, "same numbers");

static int open_space(struct page_sink *sink, struct failure *failure, enum page_space space, uint64_t id,
		      uint32_t pages_id)
{
	if (id > UINT32_MAX)
		return fail(failure, EOVERFLOW, "space-id", sink->name, NULL, "id %llu does not fit",
			    (unsigned long long)id);
	return 0;
}

static int send_entry(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, uint64_t pages,
		      uint32_t flags)
{
	const struct channel_sink *own = (struct channel_sink *)sink;

	return own->entry(own->context, space, id, address, pages, flags);
}

static int send_pages(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, const void *data,
		      size_t bytes)
{
	const struct channel_sink *own = (struct channel_sink *)sink;
	struct failure failure = {}; /* the channel keeps it */

	return page_channel_send(own->channel, (enum space_kind)space, (uint32_t)id, address, data, bytes, &failure);
}

static int close_space(struct page_sink *sink, enum page_space space, uint64_t id)
{
	return 0;
}

static const struct page_sink_ops plain_ops = {
	.open = open_space,
	.pages = send_pages,
	.close = close_space,
};

static const struct page_sink_ops pagemap_ops = {
	.keeps_pagemap = true,
	.open = open_space,
	.entry = send_entry,
	.pages = send_pages,
	.close = close_space,
};

void channel_sink_init(struct channel_sink *sink, struct page_channel *channel,
		       int (*entry)(void *context, enum page_space space, uint64_t id, uint64_t address, uint64_t pages,
				    uint32_t flags),
		       void *context)
{
	*sink = (struct channel_sink){
		.sink = {.ops = entry ? &pagemap_ops : &plain_ops, .name = "the other side"},
		.channel = channel,
		.entry = entry,
		.context = context,
	};
}
