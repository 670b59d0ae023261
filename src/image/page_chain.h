/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the pages of images lie: in the images directory itself, in one of its parents (incremental dumps), under
 * another process (pages that fork shares), or in descriptors that a migration has received into.
 *
 * A page source is a file with pages; a place says which pages of which source are the content of an address range.
 * Two places hold the same content for sure if they name the same pages of the same source.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "image/image.h"

/* Pages in a row whose content lies in a row in one source. */
struct page_place {
	uint64_t address; /* in the process, or offset in the shared memory */
	uint64_t pages;
	uint64_t first_page; /* in the source */
	uint32_t source;     /* for page_chain_open() */
	bool huge;           /* was backed by huge pages */
};

/* Ascending addresses, without overlaps. */
struct page_places {
	struct page_place *items;
	size_t count, capacity;
	uint64_t own_pages; /* not those of other processes that the images refer to */
	bool has_huge;      /* some place is */
};

struct page_chain;

/* The chain has its own copy of @images_dirfd; @failure must live as long as the chain. */
struct page_chain *page_chain_new(int images_dirfd, struct failure *failure);
/*
 * Where files come from that are not in the images directory yet: @fetch is called with the name of each before it is
 * looked for there, and returns 0 or a failure. Those of parents are not asked for.
 */
void page_chain_set_fetch(struct page_chain *chain, int (*fetch)(void *context, const char *name), void *context);
/*
 * Nobody reads this source again: if it is a copy that was fetched, its memory is free. A read that comes nevertheless
 * fails, it does not find zeros.
 */
void page_chain_drop_fetched(const struct page_chain *chain, uint32_t source);
/* Closes and frees everything but the stores' descriptors. NULL is allowed. */
void page_chain_free(struct page_chain *chain);
/*
 * All pages of this pagemap that are present or in parents, lie in @fd instead, each at the offset of its address.
 * Before the pagemap is read. @fd stays the caller's; -1: pages are in memory already and are never opened.
 * Returns the number of the source.
 */
uint32_t page_chain_add_store(struct page_chain *chain, enum image_kind kind, uint64_t id, int fd);
/* The source that @id's pages come from, as page_chain_add_store() gave it, or -1. */
int64_t page_chain_find_store(const struct page_chain *chain, enum image_kind kind, uint64_t id);
/*
 * Reads a pagemap and follows what it refers to. Everything is checked: order, range, that the parents have what they
 * are said to have, the sizes of the files.
 * @kind          IMAGE_PAGEMAP or IMAGE_SHMEM_PAGEMAP
 * @limit         no page lies at or beyond this address
 * @ret_places    belongs to the chain
 * Returns 0, -ENOENT without a recorded failure if the images have no such pagemap, or a failure.
 */
int page_chain_read(struct page_chain *chain, enum image_kind kind, uint64_t id, uint64_t limit,
		    const struct page_places **ret_places);
/*
 * Pages that were left with the page server of a lazy dump are places too, of the source that this returns, which
 * page_chain_open() refuses. Without this they are a failure. Before the first pagemap is read.
 */
uint32_t page_chain_allow_lazy(struct page_chain *chain);
/* A descriptor of the source, opened at the first call and kept; it stays the chain's. Returns 0 or a failure. */
int page_chain_open(struct page_chain *chain, uint32_t source, int *ret_fd);
/* Closes the files that page_chain_open() has opened; they are opened again when they are needed. */
void page_chain_close_files(struct page_chain *chain);
/* Calls @move for the descriptor of each directory, to get it out of the way. Returns 0 or what @move does. */
int page_chain_move_directories(struct page_chain *chain, int (*move)(void *context, int *fd), void *context);

/* For those who change the files: how many sources there are, whether one is in parent images, another descriptor. */
uint32_t page_chain_source_count(const struct page_chain *chain);
bool page_chain_is_parent(const struct page_chain *chain, uint32_t source);
/* Writable, the caller's. Returns -errno if that fails. */
int page_chain_reopen(const struct page_chain *chain, uint32_t source);

/* ---- of a directory ---- */

/*
 * Opens the directory that the images at @dirfd are an increment of: their link "parent". Returns 0, -ENOENT without a
 * recorded failure if there is none, or a failure.
 */
int images_parent_open(int dirfd, struct failure *failure, int *ret_dirfd);

/* ---- lists of places ---- */

/* Appends, or lengthens the last place if @place goes on where it ends. Addresses must ascend. */
void page_places_add(struct page_places *places, const struct page_place *place);
/* The index of the first place that ends behind @address. */
size_t page_places_find(const struct page_places *places, uint64_t address);
/*
 * The part of place *@index that lies in [@start, @end), and moves on to the next. Returns false if there is none;
 * @index comes from page_places_find(@start) first.
 */
bool page_places_part(const struct page_places *places, size_t *index, uint64_t start, uint64_t end,
		      struct page_place *ret_part);

/* ---- giving room back ---- */

/*
 * Frees the blocks of pages that are in parents of the images at @dirfd and that these images do not need: newer ones
 * replace them, or they are nobody's any more. Older images of the chain cannot be restored after that. With @all, the
 * pages that the images do need are freed too (they have been restored). Files of the parents that these images refer
 * to in no place are left alone: what they are of may be missing here because a copy is not complete. Returns 0 or a
 * failure; *ret_bytes is what was asked to be freed.
 */
int images_dedup(int dirfd, bool all, struct failure *failure, uint64_t *ret_bytes);
