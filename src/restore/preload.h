/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that is there before the restore begins.
 *
 * While a tree migrates, its memory arrives as long as it runs elsewhere, and goes at once to where it will stay: into
 * the process that becomes the root of the tree. That process maps what it is told of the root's private anonymous
 * memory at its own addresses and receives into it. When the last images are there, the restore takes these mappings
 * over instead of making new ones: nothing is copied, so the stop does not grow with the memory.
 * What cannot be mapped (an address that criu itself uses) is received into a store like the memory of other tasks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/restore.h"

/* Huge pages were asked for (MADV_HUGEPAGE), beside the MAP_* flags. */
#define PRELOAD_HUGE (1u << 31)

/* One mapping that waits to be taken over; content is received at its final address. */
struct preload_range {
	uint64_t start, end;
	uint32_t flags;     /* MAP_* that a mapping is born with, and PRELOAD_HUGE */
	bool is_registered; /* with userfault_fd: only preload_fill() makes its pages */
};

struct preload {
	int userfault_fd;             /* -1: pages are made by touching them */
	struct preload_range *ranges; /* ascending, without overlaps */
	size_t count, capacity;
};

/*
 * An empty one. Its pages are made with UFFDIO_COPY where the kernel has it: a third cheaper than faults, and half of
 * what is left is the memory itself. preload_free() ends it.
 */
void preload_begin(struct preload *preload);
/*
 * Maps [@start, @end) writable for what will be received; parts that are mapped already stay. Only parts whose
 * addresses are free are mapped: the caller asks preload_find() where a page goes. @flags: of the mapping in the source
 * (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE …). Returns 0 or -errno.
 */
int preload_map(struct preload *preload, uint64_t start, uint64_t end, uint32_t flags);
/* Unmaps what lies in [@start, @end). */
void preload_unmap(struct preload *preload, uint64_t start, uint64_t end);
/* How many bytes from @address on, at most @bytes, are mapped here; 0 = none. */
uint64_t preload_find(const struct preload *preload, uint64_t address, uint64_t bytes);
/* How many bytes from @address on, at most @bytes, are not. */
uint64_t preload_gap(const struct preload *preload, uint64_t address, uint64_t bytes);
/*
 * Copies @bytes (whole pages) of @data, NULL for zeros, to @address, which preload_find() has found; several threads
 * may do so at once. Returns 0 or -errno.
 */
int preload_fill(const struct preload *preload, uint64_t address, const void *data, uint64_t bytes);
/* All has arrived: from here on the memory is like any other. */
void preload_settle(struct preload *preload);
void preload_free(struct preload *preload);

/* ---- for the restore ---- */

/* Lets children inherit the ranges, or spares them: a fork copies page tables. Returns 0 or a failure. */
int preload_inherit(struct restore *restore, bool inherit);
/*
 * In the root, for each mapping of private anonymous memory that can stay where it was received: sets memory->placed
 * and memory->inherited. A mapping whose flags differ, in whose way criu lies, or that grew, is made anew, and its
 * pages are read from where they are, by children too: what is not taken over stays until criu's own memory goes.
 * Returns 0 or a failure.
 */
int preload_adopt(struct restore *restore);
