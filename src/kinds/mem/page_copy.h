/* SPDX-License-Identifier: Apache-2.0 */
/* Copies pages between two files with all cores, and leaves holes where pages are zero. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct page_range {
	uint64_t from, to; /* offsets in the two files, in bytes */
	uint64_t bytes;
};

/*
 * Bytes beyond the end of @from count as zeros; nothing is written at or beyond @to_size.
 * Returns 0 or -errno; *ret_writing tells which side failed.
 */
int page_copy(int from, int to, uint64_t to_size, const struct page_range *ranges, size_t count, bool *ret_writing);
/* Reads a range; bytes beyond the end of the file become zeros. Returns 0 or -errno. */
int page_copy_read(int fd, char *buffer, uint64_t offset, uint64_t bytes);
