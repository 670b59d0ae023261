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
	bool in_parent;           /* unchanged since the images before these, which have the content */
	bool huge;                /* backed by huge pages */
	bool lazy;                /* may be brought in later */
	bool left;                /* it will be: the task keeps the pages */
	bool unreadable;          /* the mapping forbids reading: only /proc/PID/mem can */
	bool shared;              /* shared since a fork: process_vm_readv would give the task copies of its own */
};

/* The images of this dump hold the content of these pages under this task. */
static inline bool page_run_is_written(const struct page_run *run)
{
	return !run->source && !run->in_parent && !run->left;
}

struct memory_map {
	struct mappings mappings;
	struct page_run *runs;
	size_t run_count, run_capacity;
	uint32_t pages_id; /* pages-<id>.img */
	bool running;      /* pages are read while the task runs: they may have changed or gone */
};

/*
 * Calls @work for every live task, with all cores: what walks page tables is worth it in trees of many tasks. @work
 * must not touch what tasks share (the arena, the failure), and returns 0 or -errno. Returns 0, or the error of the
 * task in *ret_failed.
 */
int memory_for_tasks(struct dump *dump, int (*work)(struct dump *dump, struct dump_task *task, void *context),
		     void *context, struct dump_task **ret_failed);
/* Reads the mappings of all live tasks, with all cores. Uses nothing that tasks share. Returns like the above. */
int memory_collect(struct dump *dump, struct dump_task **ret_failed);
/*
 * For a pre-dump: the same from /proc/PID/maps alone, which does not walk page tables, and task->mm's vmas with what is
 * needed to find private pages. No file is looked at. Returns 0 or a failure.
 */
int memory_collect_short(struct dump *dump, struct dump_task *task);
/* Fills task->mm's vmas through the kinds. Open files get their ids here. */
int memory_describe(struct dump *dump, struct dump_task *task);
/* The vDSO's range, 0 0 if there is none. */
void memory_find_vdso(const struct dump_task *task, uint64_t *ret_start, uint64_t *ret_end);
/* Finds the private pages of every task, and what they share. */
int memory_scan(struct dump *dump);
/* Only the first half: with a tracker, this is the instant at which the pages are armed. Returns 0 or a failure. */
int memory_scan_tasks(struct dump *dump);
/*
 * In a pre-dump, when the tree runs again: leaves out pages that tasks share since a fork, but under one of them, and
 * disarms those, so that the next dump sees them again. Returns 0 or a failure.
 */
int memory_skip_shared(struct dump *dump);
/* Writes pages and pagemap images of the whole tree with all cores. The tree is frozen. */
int memory_write(struct dump *dump);
/* True if some pagemap refers to another task's pages (the images need IMAGE_VERSION_SHARED_PAGES). */
bool memory_has_shared_runs(const struct dump *dump);
void memory_free(struct dump_task *task);
/* Frees the look-up table of mapped files. */
void mapped_files_forget(struct dump *dump);
