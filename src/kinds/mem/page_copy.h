/* SPDX-License-Identifier: Apache-2.0 */
/* Reads pages of a file with all cores, and copies them into another with holes where pages are zero. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct page_range {
	uint64_t from, to; /* offsets in the two files, in bytes */
	uint64_t bytes;
};

/*
 * Reads the ranges in pieces of at most 512 KiB and gives each to @take, from several threads at once, in any order.
 * Bytes beyond the end of the file are zeros. Returns 0, or -errno of the read or of @take; *ret_taking tells which.
 */
int page_feed(int from, const struct page_range *ranges, size_t count,
	      int (*take)(void *context, const struct page_range *piece, const char *data), void *context,
	      bool *ret_taking);
/*
 * Bytes beyond the end of @from count as zeros; nothing is written at or beyond @to_size.
 * Returns 0 or -errno; *ret_writing tells which side failed.
 */
int page_copy(int from, int to, uint64_t to_size, const struct page_range *ranges, size_t count, bool *ret_writing);
/* Reads a range; bytes beyond the end of the file become zeros. Returns 0 or -errno. */
int page_copy_read(int fd, char *buffer, uint64_t offset, uint64_t bytes);
