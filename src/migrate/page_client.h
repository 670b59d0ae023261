/* SPDX-License-Identifier: Apache-2.0 */
/* A page sink (model/page_sink.h) that gives the pages of a dump to a page server: `dump --page-server`. */
#pragma once

#include "migrate/page_link.h"
#include "model/page_sink.h"

struct page_client;

/* Connects. Returns 0 or a failure. */
int page_client_open(const struct page_link_options *options, struct failure *failure, struct page_client **ret_client);
/* For dump_options.page_sink; it is the client's. */
struct page_sink *page_client_sink(struct page_client *client);
/* Asks the server whether everything is safe. Returns 0 or a failure. */
int page_client_finish(struct page_client *client, struct failure *failure);
/* Closes and frees; after a dump that failed without page_client_finish(), so that the server drops what it has. */
void page_client_free(struct page_client *client);
