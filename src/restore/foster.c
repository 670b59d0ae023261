/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that only siblings share: the parent has written to its own since it forked them, or dropped them. Nobody but
 * the parent can give one page to several children, so it holds theirs while it forks and takes its own back
 * afterwards. Pages that hold the same (page_equal.c) look alike here and become shared too.
 *
 * It is done for a page if it saves more than it costs: a child that still shares the parent's page, and the parent, if
 * it shares it with its own parent, get a copy.
 */
#include "restore/foster.h"

#include <stdlib.h>

#include "base/fd.h"
#include "restore/memory.h"

enum { PAGE_BYTES = 4096 };

/* Pages of children where the parent has another or none. */
struct page_list {
	struct page_place *items; /* one page each */
	size_t count, capacity;
};

static int compare_pages(const void *left, const void *right)
{
	const struct page_place *a = left, *b = right;

	if (a->address != b->address)
		return a->address < b->address ? -1 : 1;
	if (a->source != b->source)
		return a->source < b->source ? -1 : 1;
	return a->first_page < b->first_page ? -1 : a->first_page > b->first_page;
}

static struct page_place page_at(const struct page_place *place, uint64_t address)
{
	struct page_place page = *place;

	page.address = address;
	page.pages = 1;
	page.first_page += (address - place->address) / PAGE_BYTES;
	return page;
}

static void add_pages(struct page_list *list, const struct page_place *place, uint64_t start, uint64_t end)
{
	for (uint64_t address = start; address < end && !place->huge; address += PAGE_BYTES) {
		ARRAY_GROW(list->items, list->count, list->capacity);
		list->items[list->count++] = page_at(place, address);
	}
}

static void collect_from_place(const struct page_places *own, const struct page_place *place, struct page_list *list)
{
	uint64_t at = place->address, end = at + place->pages * PAGE_BYTES;
	size_t index = page_places_find(own, at);
	struct page_place mine;

	while (page_places_part(own, &index, at, end, &mine)) {
		const struct page_place same = page_at(place, mine.address);
		add_pages(list, place, at, mine.address);
		at = mine.address + mine.pages * PAGE_BYTES;
		if (!mine.huge && (same.source != mine.source || same.first_page != mine.first_page))
			add_pages(list, place, mine.address, at);
	}
	add_pages(list, place, at, end);
}

/* Returns the number of children that have memory. */
static size_t collect_from_children(const struct restore_task *task, const struct restore_tree_node *node,
				    struct page_list *list)
{
	size_t children = 0;

	for (size_t i = 0; i < node->child_count; i++) {
		const struct restore_task *child = node->children[i]->task;
		if (!child || !child->memory)
			continue;
		children++;
		for (size_t p = 0; p < child->memory->places->count; p++)
			collect_from_place(task->memory->places, &child->memory->places->items[p], list);
	}
	return children;
}

/* A mapping without pages of its own may not be writable. */
static bool is_fosterable(const struct restore_task *task, uint64_t address)
{
	size_t low = 0, high = task->mm->n_vmas;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (task->mm->vmas[middle]->end <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low < task->mm->n_vmas && task->mm->vmas[low]->start <= address &&
	       memory_is_early(task->mm->vmas[low]) && memory_has_pages(task->memory, task->mm->vmas[low]);
}

/* Leaves one page for each address that is worth it. */
static void choose(const struct restore_task *task, struct page_list *list, size_t children)
{
	size_t chosen = 0;

	qsort(list->items, list->count, sizeof(*list->items), compare_pages);
	for (size_t first = 0, end; first < list->count; first = end) {
		size_t best = first, best_count = 0;
		for (size_t group = end = first;
		     end < list->count && list->items[end].address == list->items[first].address; end++) {
			if (compare_pages(&list->items[group], &list->items[end]))
				group = end;
			if (end - group + 1 > best_count) {
				best = group;
				best_count = end - group + 1;
			}
		}
		size_t others = children - (end - first); /* which may have the parent's */
		if (best_count > others + 1 && is_fosterable(task, list->items[best].address))
			list->items[chosen++] = list->items[best];
	}
	list->count = chosen;
}

static void add_part(struct page_places *places, const struct page_place *place, uint64_t start, uint64_t end)
{
	struct page_place part = page_at(place, start);

	part.pages = (end - start) / PAGE_BYTES;
	if (end > start)
		page_places_add(places, &part);
}

/* @own with the chosen pages in place of what is there. */
static struct page_places *places_for_children(struct restore *restore, const struct page_places *own,
					       const struct page_list *chosen)
{
	struct page_places *given = arena_alloc(&restore->arena, sizeof(*given));
	size_t next = 0;

	for (size_t i = 0; i < own->count; i++) {
		const struct page_place *place = &own->items[i];
		uint64_t at = place->address, end = at + place->pages * PAGE_BYTES;
		for (; next < chosen->count && chosen->items[next].address < end; next++) {
			const struct page_place *page = &chosen->items[next];
			if (page->address >= at) {
				add_part(given, place, at, page->address);
				at = page->address + PAGE_BYTES;
			}
			page_places_add(given, page);
		}
		add_part(given, place, at, end);
	}
	for (; next < chosen->count; next++)
		page_places_add(given, &chosen->items[next]);
	return given;
}

/* Makes the memory that holds @base hold @wanted. */
static int exchange(struct restore *restore, const struct page_places *wanted, const struct page_places *base)
{
	const MmEntry *mm = restore->self->mm;
	int error = 0;

	for (size_t i = 0; i < mm->n_vmas && !error; i++) {
		if (memory_is_early(mm->vmas[i]))
			error = pages_load(restore, i, wanted, base);
		if (error < 0)
			fail_in(&restore->failure, "%s: mapping %lx-%lx", restore_task_name(restore, restore->self),
				mm->vmas[i]->start, mm->vmas[i]->end);
	}
	return error;
}

int foster_load(struct restore *restore, const struct restore_tree_node *node)
{
	struct restore_memory *memory = restore->self->memory;
	struct page_list list = {};
	int error = 0;

	/* Pages that are received later, or lie in place already, cannot be exchanged. */
	if (!memory || memory->preloaded || restore->lazy_fd >= 0 || node->child_count < 2)
		return 0;
	choose(restore->self, &list, collect_from_children(restore->self, node, &list));
	if (list.count) {
		memory->given = places_for_children(restore, memory->places, &list);
		error = exchange(restore, memory->given, memory->places);
	}
	free(list.items);
	return error;
}

int foster_end(struct restore *restore)
{
	const struct restore_memory *memory = restore->self->memory;

	return memory && memory->given ? exchange(restore, memory->places, memory->given) : 0;
}
