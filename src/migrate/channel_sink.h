/* SPDX-License-Identifier: Apache-2.0 */
/* A page sink (model/page_sink.h) that sends what a dump gives it through a page channel. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/page_sink.h"

struct page_channel;

struct channel_sink {
	struct page_sink sink; /* for dump_options */
	struct page_channel *channel;
	/* Told what the pagemap says, if the sink keeps it; see page_sink_ops.entry. Returns 0 or -errno. */
	int (*entry)(void *context, enum page_space space, uint64_t id, uint64_t address, uint64_t pages,
		     uint32_t flags);
	void *context;
};

/*
 * Errors of the channel are those of page_channel_failure(). Ids above UINT32_MAX are refused.
 * @entry  NULL = the dump writes the pagemap images
 * @channel and the sink stay the caller's and outlive the dump.
 */
void channel_sink_init(struct channel_sink *sink, struct page_channel *channel,
		       int (*entry)(void *context, enum page_space space, uint64_t id, uint64_t address, uint64_t pages,
				    uint32_t flags),
		       void *context);
