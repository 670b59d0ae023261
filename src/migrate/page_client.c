/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_client.h"

#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "image/image.h"
#include "migrate/page_protocol.h"
#include "migrate/stream.h"

struct page_client {
	struct page_sink sink;
	struct stream *stream;
	char name[200];
};

/* What every page server knows; the others describe how pages lay in memory. */
#define WIRE_FLAGS (PAGEMAP_IN_PARENT | PAGEMAP_LAZY | PAGEMAP_PRESENT)

static int open_space(struct page_sink *sink, struct failure *failure, enum page_space space, uint64_t id,
		      uint32_t pages_id)
{
	struct page_client *client = (struct page_client *)sink;
	const struct page_request request = {.command = PAGE_COMMAND_OPEN_ANSWER,
					     .destination = page_destination(space, id)};
	uint8_t has_parent;
	int error = page_request_send(client->stream, &request);

	if (!error)
		error = stream_read_full(client->stream, &has_parent, sizeof(has_parent));
	return error ? stream_fail(client->stream, error, failure) : 0;
}

static int send_entry(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, uint64_t pages,
		      uint32_t flags)
{
	struct page_client *client = (struct page_client *)sink;
	const struct page_request request = {
		.command = PAGE_COMMAND_ADD_FLAGS,
		.flags = flags & WIRE_FLAGS,
		.pages = pages,
		.address = address,
		.destination = page_destination(space, id),
	};

	return page_request_send(client->stream, &request);
}

static int send_pages(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, const void *data,
		      size_t bytes)
{
	return stream_write_full(((struct page_client *)sink)->stream, data, bytes);
}

static int close_space(struct page_sink *sink, enum page_space space, uint64_t id)
{
	return 0;
}

static const struct page_sink_ops operations = {
	.ordered = true,
	.keeps_pagemap = true,
	.open = open_space,
	.entry = send_entry,
	.pages = send_pages,
	.close = close_space,
};

int page_client_open(const struct page_link_options *options, struct failure *failure, struct page_client **ret_client)
{
	struct stream *stream;
	int error = page_link_connect(options, failure, &stream);

	if (error < 0)
		return fail_in(failure, "page server");
	struct page_client *client = xcalloc(1, sizeof(*client));
	client->stream = stream;
	snprintf(client->name, sizeof(client->name), "page server %s", stream_peer(stream));
	client->sink = (struct page_sink){.ops = &operations, .name = client->name};
	*ret_client = client;
	return 0;
}

struct page_sink *page_client_sink(struct page_client *client)
{
	return &client->sink;
}

int page_client_finish(struct page_client *client, struct failure *failure)
{
	int error = page_protocol_close(client->stream);

	if (error == -EREMOTEIO)
		return fail(failure, EREMOTEIO, "page-server", client->name, "its log says why",
			    "it could not store the pages");
	return error ? stream_fail(client->stream, error, failure) : 0;
}

void page_client_free(struct page_client *client)
{
	if (!client)
		return;
	stream_close(&client->stream);
	free(client);
}
