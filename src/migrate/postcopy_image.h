/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy: the pages of one dumped process, numbered in the order of their addresses, and which of them are asked
 * for. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "image/page_chain.h"

#define POSTCOPY_NO_PAGE UINT64_MAX

struct postcopy_image {
	uint32_t id;
	const struct page_places *places;
	uint64_t *first;  /* by index of the place: pages before it */
	uint64_t total;   /* pages */
	uint8_t *asked;   /* one bit for each page; what has arrived counts */
	uint8_t *arrived; /* the same, shared with who goes on after us (lazy_state_bits()); NULL = nobody knows */
	uint64_t cursor;  /* the page from which on more is asked for */
	bool touched;     /* had a fault since others were looked at */
};

/* @places is borrowed. @state_fd: of a space that wants its pages; what has arrived, is taken from there. */
struct postcopy_image *postcopy_image_new(uint32_t id, const struct page_places *places, int state_fd);
void postcopy_image_free(struct postcopy_image *image);

/* The number of the page at @address, and how many follow in its place, itself included; or POSTCOPY_NO_PAGE. */
uint64_t postcopy_image_number(const struct postcopy_image *image, uint64_t address, uint64_t *ret_pages_left);
uint64_t postcopy_image_address(const struct postcopy_image *image, uint64_t number);

bool postcopy_image_is_asked(const struct postcopy_image *image, uint64_t number);
void postcopy_image_set_asked(struct postcopy_image *image, uint64_t number, uint64_t pages, bool asked);
/* They are in place wherever they are wanted. */
void postcopy_image_set_arrived(struct postcopy_image *image, uint64_t number, uint64_t pages);
/* The first page from the cursor on and round that nobody has asked for, or the number of all. */
uint64_t postcopy_image_next(const struct postcopy_image *image);
