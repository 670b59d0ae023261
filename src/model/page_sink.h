/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the pages of a dump go when they do not go into pages-<id>.img files: to a page server, to a migration's
 * other side, through a compressor. A sink is made by whoever starts the dump and handed over in dump_options.
 *
 * Pages come in spaces: the private pages of one process, or one piece of shared memory. Per space the calls are
 *
 *	open, { entry, pages … } …, close
 *
 * entry() announces the pages that follow in the same order and form as an entry of a pagemap image, and is called
 * only if the sink keeps the pagemap itself. An ordered sink gets everything from one thread, one space after another,
 * addresses ascending, each entry right before its pages. Any other sink gets all open() and entry() calls first, then
 * pages() from several threads at once in any order, then the close() calls; spaces of shared memory come one after
 * another, earlier than those of processes, in both cases.
 *
 * Pages that are all zero come like others. Data is whole pages of 4096 bytes and belongs to the caller again when the
 * call returns. After a call has failed, no more calls come but for close() of the spaces that are open; what had been
 * sent is then worthless.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The code of a failure whose cause only the sink knows. */
#define PAGE_SINK_FAILED "page-sink"

struct failure;
struct page_sink;

/* Memory of a sink, which pages are read into. */
struct page_buffer {
	uint8_t *data;            /* PAGE_BUFFER_BYTES, aligned to pages */
	struct page_buffer *next; /* the sink's own */
};
enum { PAGE_BUFFER_BYTES = 1 << 20 };

enum page_space {
	PAGE_SPACE_PROCESS = 1, /* id: the pid in the images; addresses of the process */
	PAGE_SPACE_SHMEM = 2,   /* id: shmid; addresses are offsets in the shared memory */
};

struct page_sink_ops {
	bool ordered; /* see above */
	/*
	 * The receiver writes the pagemap images, and the dump does not. entry() then tells also of ranges that carry
	 * no pages (PAGEMAP_IN_PARENT). References to another task's pages cannot be told: such pages come in full.
	 */
	bool keeps_pagemap;
	/*
	 * @pages_id  what the pagemap image will say of the file with the pages; nothing to a sink that keeps the
	 * pagemap Returns 0 or a failure that it has reported with fail().
	 */
	int (*open)(struct page_sink *sink, struct failure *failure, enum page_space space, uint64_t id,
		    uint32_t pages_id);
	/* @pages  their number; @flags  PAGEMAP_… of image.h. Pages follow if PAGEMAP_PRESENT is set. 0 or -errno. */
	int (*entry)(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, uint64_t pages,
		     uint32_t flags);
	/* Returns 0 or -errno. Called from several threads at once unless the sink is ordered. */
	int (*pages)(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, const void *data,
		     size_t bytes);
	/*
	 * The same without a copy; NULL = it has no memory to lend. lend() waits until there is some. It goes back with
	 * pages_lent(): whole pages from its beginning on, or none (@bytes 0) after a failure. 0 or -errno.
	 */
	int (*lend)(struct page_sink *sink, struct page_buffer **ret_buffer);
	int (*pages_lent)(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address,
			  struct page_buffer *buffer, size_t bytes);
	/* No more pages of this space will come. Returns 0 or -errno. */
	int (*close)(struct page_sink *sink, enum page_space space, uint64_t id);
};

/* The first member of what implements it. */
struct page_sink {
	const struct page_sink_ops *ops;
	const char *name; /* for failures: "page server 10.0.0.2:27" */
	/*
	 * The highest pages_id that open() was called with, kept by sinks that cannot take back what they have sent:
	 * when a dump begins anew (a connection was in flight), it goes on from there.
	 */
	uint32_t last_pages_id;
};
