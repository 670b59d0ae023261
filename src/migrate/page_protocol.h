/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page server's protocol, as CRIU speaks it: a request of 32 bytes, followed by pages where the request says so.
 * All numbers are little-endian. A destination is a space of pages: a process or a piece of shared memory.
 *
 *	open     (3, or 4: answered with one byte, 1 = parent images have this space)
 *	add      (6 with pagemap flags, pages follow if PAGEMAP_PRESENT; 1: pages follow; 2: pages are in the parent)
 *	parent?  (5: answered with an i32, 0 = parent images have this space)
 *	get      (7: answered with a request 6 of the same address, of as many pages as there are in a row, and them)
 *	close    (0x1023, 0x1024: answered with an i32, 0 = everything is safe)
 */
#pragma once

#include <stdint.h>

#include "base/fail.h"
#include "model/page_sink.h"

struct stream;

enum page_command {
	PAGE_COMMAND_ADD = 1,
	PAGE_COMMAND_HOLE = 2,
	PAGE_COMMAND_OPEN = 3,
	PAGE_COMMAND_OPEN_ANSWER = 4,
	PAGE_COMMAND_PARENT = 5,
	PAGE_COMMAND_ADD_FLAGS = 6,
	PAGE_COMMAND_GET = 7,
	PAGE_COMMAND_CLOSE = 0x1023,
	PAGE_COMMAND_FORCE_CLOSE = 0x1024,
};

/* In the order and layout of the wire. */
struct page_request {
	uint16_t command; /* enum page_command */
	uint16_t flags;   /* PAGEMAP_…, of command 6 */
	uint32_t padding;
	uint64_t pages;
	uint64_t address;
	uint64_t destination;
};

_Static_assert(sizeof(struct page_request) == 32, "a request has 32 bytes");

static inline uint64_t page_destination(enum page_space space, uint64_t id)
{
	return id << 8 | space;
}

/*
 * The space and id of a destination, checked: a known type, an id that fits into the name of an image.
 * Returns 0 or -EINVAL.
 */
int page_destination_parse(uint64_t destination, enum page_space *ret_space, uint32_t *ret_id);
/* The address range is made of whole pages and lies where pages can lie. Returns 0 or -EINVAL. */
int page_request_check_range(const struct page_request *request, enum page_space space);
/* Returns 0 or -errno, as streams do. */
int page_request_send(struct stream *stream, const struct page_request *request);
int page_request_receive(struct stream *stream, struct page_request *ret_request);
/* Sends CLOSE and reads its answer. Returns 0, a stream's error, or -EREMOTEIO if the other side had failed. */
int page_protocol_close(struct stream *stream);
