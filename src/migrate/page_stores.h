/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Received pages that cannot go to their final place yet: one file in memory for each address space or shared memory,
 * with every page at the offset of its address. Used by several receiving threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "model/options.h"

struct page_stores;

/* Returns 0 or a failure. */
int page_stores_new(struct failure *failure, struct page_stores **ret_stores);
void page_stores_free(struct page_stores *stores);
/* A buffer of FRAME_MAX_BYTES for data on its way into a store; goes back by page_stores_return(). */
int page_stores_buffer(struct page_stores *stores, struct failure *failure, void **ret_buffer);
void page_stores_return(struct page_stores *stores, void *buffer);
/* Puts pages into the store of a space, which is made on the first call. Returns 0 or a failure. */
int page_stores_write(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t address,
		      uint64_t bytes, const void *data, struct failure *failure);
/* Makes holes; @data is not used. Returns 0 or a failure. */
int page_stores_drop(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t address,
		     uint64_t bytes, const void *data, struct failure *failure);
/* Whether pages with data lie in [@start, @end) of the space. */
bool page_stores_has_data(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t start,
			  uint64_t end);
/* All stores; the array and its descriptors live as long as @stores. Nobody may write any more. */
const struct page_store *page_stores_list(const struct page_stores *stores, size_t *ret_count);
