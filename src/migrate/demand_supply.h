/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy, at the destination: pages for the engine (postcopy.h) that the source still has (demand_server.h). */
#pragma once

#include "base/fail.h"
#include "migrate/postcopy.h"

struct stream;

/*
 * @directory_fd  has the pagemap images, which say what is missing; borrowed
 * @streams       borrowed; the first is for what tasks wait for, there are at least two
 * @failure       of reading the pagemaps; outlives the supply
 * Returns 0 or a failure.
 */
int demand_supply_new(int directory_fd, struct stream *const *streams, size_t stream_count, struct failure *failure,
		      struct page_supply **ret_supply);
void demand_supply_free(struct page_supply *supply);
