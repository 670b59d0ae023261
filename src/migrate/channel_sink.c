/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/channel_sink.h"

#include <errno.h>

#include "base/fail.h"
#include "migrate/page_channel.h"

_Static_assert((int)FRAME_MAX_BYTES == PAGE_BUFFER_BYTES, "a piece fills a buffer");
_Static_assert((int)SPACE_PROCESS == PAGE_SPACE_PROCESS && (int)SPACE_SHMEM == PAGE_SPACE_SHMEM, "same numbers");

static int open_space(struct page_sink *sink, struct failure *failure, enum page_space space, uint64_t id,
		      uint32_t pages_id)
{
	if (id > UINT32_MAX)
		return fail(failure, EOVERFLOW, "space-id", sink->name, NULL, "id %llu does not fit",
			    (unsigned long long)id);
	return 0;
}

static int send_pages(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, const void *data,
		      size_t bytes)
{
	const struct channel_sink *own = (struct channel_sink *)sink;
	struct failure failure = {}; /* the channel keeps it */

	return page_channel_send(own->channel, (enum space_kind)space, (uint32_t)id, address, data, bytes, &failure);
}

static int lend(struct page_sink *sink, struct page_buffer **ret_buffer)
{
	struct failure failure = {};

	return page_channel_buffer(((struct channel_sink *)sink)->channel, &failure, ret_buffer);
}

static int send_lent(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address,
		     struct page_buffer *buffer, size_t bytes)
{
	const struct channel_sink *own = (struct channel_sink *)sink;
	struct failure failure = {};

	if (bytes)
		return page_channel_submit(own->channel, buffer, (enum space_kind)space, (uint32_t)id, address, bytes,
					   &failure);
	page_channel_return(own->channel, buffer);
	return 0;
}

static int close_space(struct page_sink *sink, enum page_space space, uint64_t id)
{
	return 0;
}

static const struct page_sink_ops operations = {
	.open = open_space,
	.pages = send_pages,
	.lend = lend,
	.pages_lent = send_lent,
	.close = close_space,
};

void channel_sink_init(struct channel_sink *sink, struct page_channel *channel)
{
	*sink = (struct channel_sink){.sink = {.ops = &operations, .name = "the other side"}, .channel = channel};
}
