/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of the tree's tasks at dump: which pages exist, which of them several tasks share since a fork, and the
 * writing of each page once.
 */
#pragma once

#include "kernel/maps.h"
#include "model/dump.h"

/* Pages in a row, in one task, that the images hold together. */
struct page_run {
	uint64_t address;
	uint64_t pages;
	struct dump_task *source; /* NULL: written by this task; else the pages are those of @source … */
	uint64_t source_address;  /* … at this address */
	bool huge;                /* backed by huge pages */
	bool lazy;                /* may be brought in later */
	bool unreadable;          /* the mapping forbids reading: only /proc/PID/mem can */
	bool shared;              /* shared since a fork: process_vm_readv would give the task copies of its own */
};

/* The images of this dump hold the content of these pages under this task. */
static inline bool page_run_is_written(const struct page_run *run)
{
	return !run->source;
}

struct memory_map {
	struct mappings mappings;
	struct page_run *runs;
	size_t run_count, run_capacity;
	uint32_t pages_id; /* pages-<id>.img */
};

/* Reads the mappings of all live tasks, with all cores. Returns 0 or a failure. */
int memory_collect(struct dump *dump);
/* Fills task->mm's vmas through the kinds. Open files get their ids here. */
int memory_describe(struct dump *dump, struct dump_task *task);
/* The vDSO's range, 0 0 if there is none. */
void memory_find_vdso(const struct dump_task *task, uint64_t *ret_start, uint64_t *ret_end);
/* Finds the private pages of every task, and what they share. */
int memory_scan(struct dump *dump);
/* Writes pages and pagemap images of the whole tree with all cores. The tree is frozen. */
int memory_write(struct dump *dump);
/* True if some pagemap refers to another task's pages (the images need IMAGE_VERSION_SHARED_PAGES). */
bool memory_has_shared_runs(const struct dump *dump);
void memory_free(struct dump_task *task);
/* Frees the look-up table of mapped files. */
void mapped_files_forget(struct dump *dump);
