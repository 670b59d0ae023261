/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of restored tasks: reading the page images, mapping, loading (restore/memory.c, restore/pages.c). */
#pragma once

#include "image/page_chain.h"
#include "model/restore.h"

struct restore_memory {
	const struct page_places *places; /* of its pagemap; they belong to restore->page_chain */
	const struct page_places *later;  /* a migration: pages that come when it runs, and are no places; else NULL */
	uint64_t *placed;                 /* by index of the vma: where it is now; its own address or a staging one */
	bool *inherited; /* by index of the vma: it came with the fork, or before the restore began (preload.h) */
	const struct page_places *given;        /* what children find at birth (foster.h); NULL = the same as places */
	const struct restore_memory *preloaded; /* of a root with a preload: its pages that are in place */
};

/* The MAP_* flags that a mapping of this entry is made with. */
uint32_t memory_birth_flags(const VmaEntry *vma);
/* Reads and checks the page images of all tasks and finds room for staging. In criu. Returns 0 or a failure. */
int memory_read(struct restore *restore);
/* In the task, before its children are forked: private memory, with content. Returns 0 or a failure. */
int memory_restore_private(struct restore *restore);
/* In the task, when all descriptors exist: shared memory and what else needs descriptors of the tree. */
int memory_restore_shared(struct restore *restore);
/* In the task, at the end: protections, advice, locks, guards. */
int memory_finish(struct restore *restore);
/* True of private memory that needs nothing of the tree but plain files: what memory_restore_private() brings. */
bool memory_is_early(const VmaEntry *vma);
bool memory_has_pages(const struct restore_memory *memory, const VmaEntry *vma);
/* Loads pages of the vma, that is mapped writable at memory->placed; only what differs from @base (may be NULL). */
int pages_load(struct restore *restore, size_t vma_index, const struct page_places *own,
	       const struct page_places *base);
