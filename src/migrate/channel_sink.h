/* SPDX-License-Identifier: Apache-2.0 */
/* A page sink (model/page_sink.h) that sends what a dump gives it through a page channel. */
#pragma once

#include "model/page_sink.h"

struct page_channel;

struct channel_sink {
	struct page_sink sink; /* for dump_options */
	struct page_channel *channel;
};

/*
 * Errors of the channel are those of page_channel_failure(). Ids above UINT32_MAX are refused.
 * @channel and the sink stay the caller's and outlive the dump.
 */
void channel_sink_init(struct channel_sink *sink, struct page_channel *channel);
