/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/stores.h"

#include <fcntl.h>

#include "base/fd.h"
#include "image/page_chain.h"
#include "kinds/fd/held.h"
#include "restore/memory.h"
#include "restore/preload.h"

enum { PAGE_BYTES = 4096 };

static enum image_kind kind_of_store(const struct page_store *store)
{
	return store->space == PAGE_STORE_SHMEM ? IMAGE_SHMEM_PAGEMAP : IMAGE_PAGEMAP;
}

/* Tasks read from them when their own descriptors are in place. */
static int add_store(struct restore *restore, const struct page_store *store)
{
	int fd = fcntl(store->fd, F_DUPFD_CLOEXEC, 0);
	int error = fd < 0 ? fail_errno(&restore->failure, errno, "restore-fds", NULL, NULL, "cannot keep a store") : 0;

	if (!error)
		error = held_keep(restore, &fd);
	if (!error)
		page_chain_add_store(restore->page_chain, kind_of_store(store), store->id, fd);
	return error;
}

int stores_add(struct restore *restore)
{
	if (!restore->options->preload)
		return 0;
	for (size_t i = 0; i < restore->options->store_count; i++) {
		int error = add_store(restore, &restore->options->stores[i]);
		if (error < 0)
			return error;
	}
	/* Nothing came for these, or all of it is in place. */
	for (size_t i = 0; i < restore->task_count; i++)
		if (page_chain_find_store(restore->page_chain, IMAGE_PAGEMAP, restore->tasks[i]->pid) < 0)
			page_chain_add_store(restore->page_chain, IMAGE_PAGEMAP, restore->tasks[i]->pid, -1);
	return 0;
}

/* Splits a place in the root's store where the preload begins and ends. */
static void add_parts(const struct preload *preload, struct page_places *places, const struct page_place *place,
		      uint32_t in_place)
{
	for (uint64_t done = 0, bytes; done < place->pages * PAGE_BYTES; done += bytes) {
		uint64_t from = place->first_page * PAGE_BYTES + done, left = place->pages * PAGE_BYTES - done;
		struct page_place part = *place;
		bytes = preload_find(preload, from, left);
		if (bytes)
			part.source = in_place;
		else
			bytes = preload_gap(preload, from, left);
		part.address += done;
		part.first_page += done / PAGE_BYTES;
		part.pages = bytes / PAGE_BYTES;
		page_places_add(places, &part);
	}
}

static const struct page_places *split_places(struct restore *restore, const struct page_places *whole, uint32_t store,
					      uint32_t in_place)
{
	struct page_places *split = arena_alloc(&restore->arena, sizeof(*split));

	for (size_t i = 0; i < whole->count; i++)
		if (whole->items[i].source == store)
			add_parts(restore->options->preload, split, &whole->items[i], in_place);
		else
			page_places_add(split, &whole->items[i]);
	split->own_pages = whole->own_pages;
	return split;
}

/* With post-copy: what has come is loaded and what has not is missed, so that it is asked for. */
static void set_missing_apart(struct restore *restore, struct restore_memory *memory, uint32_t lazy_source)
{
	struct page_places *here = arena_alloc(&restore->arena, sizeof(*here));
	struct page_places *later = arena_alloc(&restore->arena, sizeof(*later));

	for (size_t i = 0; i < memory->places->count; i++)
		page_places_add(memory->places->items[i].source == lazy_source ? later : here,
				&memory->places->items[i]);
	here->own_pages = memory->places->own_pages;
	memory->places = here;
	memory->later = later;
}

/* What the ranges hold, as if it had been loaded. */
static const struct restore_memory *describe_preload(struct restore *restore, uint32_t in_place)
{
	const struct preload *preload = restore->options->preload;
	struct restore_memory *memory = arena_alloc(&restore->arena, sizeof(*memory));
	struct page_places *places = arena_alloc(&restore->arena, sizeof(*places));

	for (size_t i = 0; i < preload->count; i++)
		page_places_add(places,
				&(struct page_place){
					.address = preload->ranges[i].start,
					.pages = (preload->ranges[i].end - preload->ranges[i].start) / PAGE_BYTES,
					.first_page = preload->ranges[i].start / PAGE_BYTES,
					.source = in_place,
				});
	memory->places = places;
	return memory;
}

void stores_find_preloaded(struct restore *restore)
{
	struct restore_task *root = restore->tasks[0];

	if (!restore->options->preload)
		return;
	/* A mapping of the root that cannot stay in its place, or of a child, reads it through this. */
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && held_keep(restore, &fd) < 0) {
		close_fd_pointer(&fd);
		fd = -1;
	}
	uint32_t store = page_chain_find_store(restore->page_chain, IMAGE_PAGEMAP, root->pid);
	for (size_t i = 0; restore->options->lazy_pages && i < restore->task_count; i++)
		if (restore->tasks[i]->memory)
			set_missing_apart(restore, restore->tasks[i]->memory,
					  page_chain_allow_lazy(restore->page_chain));
	uint32_t in_place = page_chain_add_store(restore->page_chain, IMAGE_KIND_COUNT, 0, fd);
	for (size_t i = 0; i < restore->task_count; i++)
		if (restore->tasks[i]->memory)
			restore->tasks[i]->memory->places =
				split_places(restore, restore->tasks[i]->memory->places, store, in_place);
	root->memory->preloaded = describe_preload(restore, in_place);
}
