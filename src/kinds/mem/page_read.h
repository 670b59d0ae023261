/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the pages of frozen tasks from outside. */
#pragma once

#include "kinds/mem/memory.h"

/* Pages in a row that are read together. */
struct page_piece {
	struct dump_task *task;
	uint64_t address, bytes;
	uint64_t offset;   /* of the task's pages before these, in bytes: the place in its pages file */
	bool through_file; /* read with /proc/PID/mem */
};

/* The piece of @run that begins @done_bytes into it and has at most @most_bytes; its offset is left 0. */
struct page_piece page_piece_of_run(struct dump_task *task, const struct page_run *run, uint64_t done_bytes,
				    uint64_t most_bytes);
/*
 * Reads as many of the @count pieces (at least one) as belong to one task and fit into @buffer of @room_bytes. Returns
 * their number and the bytes of all, or -errno.
 */
int page_read(const struct page_piece *pieces, size_t count, char *buffer, size_t room_bytes, size_t *ret_bytes);
