/* SPDX-License-Identifier: Apache-2.0 */
/* Private memory without a file: heap, stacks, malloc's arenas, huge pages. */
#include <string.h>
#include <sys/mman.h>

#include "kinds/mem/mem_kind.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

static bool anonymous_match(const struct mapping *mapping)
{
	/* "[heap]", "[stack]", "[anon:name]"; names of files begin with a slash. */
	return !mapping->shared && (!mapping->inode && mapping->name[0] != '/');
}

static int anonymous_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	entry->status = VMA_STATUS_REGULAR | VMA_STATUS_ANON_PRIVATE;
	entry->flags |=
		mapping->flags & MAPPING_DROPPABLE ? MAP_DROPPABLE | MAP_ANONYMOUS : MAP_PRIVATE | MAP_ANONYMOUS;
	entry->pgoff = 0;
	if (!strcmp(mapping->name, "[heap]"))
		entry->status |= VMA_STATUS_HEAP;
	return 0;
}

static bool anonymous_match_entry(const VmaEntry *entry)
{
	return entry->status & VMA_STATUS_ANON_PRIVATE;
}

static int anonymous_open(struct restore *restore, const VmaEntry *entry, int *ret_fd)
{
	*ret_fd = -1;
	return 0;
}

const struct mem_kind anonymous_mapping_kind = {
	.name = "anonymous memory",
	.match = anonymous_match,
	.dump = anonymous_dump,
	.has_private_pages = true,
	.match_entry = anonymous_match_entry,
	.open = anonymous_open,
};
