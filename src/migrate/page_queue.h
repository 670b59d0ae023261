/* SPDX-License-Identifier: Apache-2.0 */
/* What waits to be sent by a page channel: pieces of pages, and ranges that are zero or gone. Private to the channel.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/frames.h"

struct page_buffer;

struct queued_piece {
	struct queued_piece *next;
	enum frame_type type; /* PAGES, ZERO or DROP */
	uint32_t space_kind, space_id;
	uint64_t address, pages;
	struct page_buffer *buffer; /* of PAGES */
};

struct page_queue {
	struct queued_piece *first, **end;
	size_t count;
};

void page_queue_init(struct page_queue *queue);
/* Puts a copy of @piece at the end. */
void page_queue_put(struct page_queue *queue, const struct queued_piece *piece);
/* Takes the first piece. Returns false if there is none. */
bool page_queue_take(struct page_queue *queue, struct queued_piece *ret_piece);
