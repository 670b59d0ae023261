/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages a tree has written since the last dump: write tracking of its memory from outside.
 *
 * A tracker goes with a row of dumps of one tree, the last one included, in one criu (`criu migrate`) or handed on
 * between several through the keeper (dump/keeper.h). It is made with tracker_new() and put into dump_options. The
 * first dump with it has all pages; each later one says of pages that did not change that they are in the images of
 * the dump before (PAGEMAP_IN_PARENT), and arms the tracking again at the same instant. What cannot be tracked comes
 * in full each time. After a dump that failed, the next one is a full one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "inject/program.h"
#include "kinds/mem/page_regions.h"
#include "model/dump.h"

struct memory_tracker;

/* One tracked address space, as the keeper holds it. */
struct tracked_mm {
	pid_t pid;
	uint64_t start_time; /* of the process, in clock ticks since boot: pids come again */
	int uffd;
	struct region_list *armed; /* by the last scan; NULL = it is not known what was */
};

struct memory_tracker *tracker_new(void);
/* Ends the tracking and frees; NULL is allowed. Takes 25 to 40 ms per GiB that is armed in 4 KiB pages. */
void tracker_free(struct memory_tracker *tracker);
/* Whether this kernel can track writes. Returns 0 or a failure that says what is missing. */
int tracker_check(struct failure *failure);

/*
 * The run id of the last complete dump with this tracker (inventory_entry.dump_criu_run_id), the only one whose
 * images the next may refer to; NULL if the next dump will be a full one.
 */
const char *tracker_run_id(const struct memory_tracker *tracker);
/* Makes the next dump a full one: its parent images are others. Memory stays armed. */
void tracker_forget_images(struct memory_tracker *tracker);
/*
 * How many private pages of the tracked processes a dump would have to write now, without stopping anybody and without
 * changing anything: 1 to 2 ms per GiB. Processes that were forked since the last dump are not counted.
 * Returns 0 or a failure.
 */
int tracker_count_dirty(const struct memory_tracker *tracker, struct failure *failure, uint64_t *ret_pages);

/* ---- handing it on ---- */

const struct tracked_mm *tracker_list(const struct memory_tracker *tracker, size_t *ret_count);
/* Takes over mm->uffd. */
void tracker_add(struct memory_tracker *tracker, const struct tracked_mm *mm);
/* As tracker_commit(), for a tracker that is put together again. */
void tracker_set_run_id(struct memory_tracker *tracker, const char *run_id);

/* ---- for the stages of a dump ---- */

/* Entry: frozen. Forgets the address spaces that are gone. */
void tracker_begin(struct dump *dump);
/* True if the task has no userfaultfd of the tracker's yet. */
bool tracker_wants(const struct dump *dump, const struct dump_task *task);
/*
 * The task's own part: adds calls to the end of its leader's program that make a userfaultfd, wait for criu to take it
 * over, and close it in any case, so that a criu that is killed leaves none. Returns the step that tracker_adopt()
 * needs.
 */
size_t tracker_ask(struct program *program, uint64_t patience_ns);
/*
 * Takes the userfaultfd over from the task, whose leader runs the program, and lets it go on. A task that may not have
 * one is dumped in full, with a warning. Returns 0 or a failure.
 */
int tracker_adopt(struct dump *dump, struct dump_task *task, size_t step);
/*
 * Registers all mappings of the frozen task that may have private pages (task->mm says which they are) and starts the
 * tracking of new ones. @pagemap_fd is its /proc/PID/pagemap. Returns 1 if pages of the task can be trusted to tell, 0
 * if it is not tracked, or -errno.
 */
int tracker_register(struct dump *dump, struct dump_task *task, int pagemap_fd);
/* True if pages that did not change are in the images of the last dump. */
bool tracker_has_parent(const struct dump *dump);
/*
 * What the last scan of the task has armed, for page_regions_scan_changes(), or NULL. Set with the list of a scan,
 * whose items the tracker takes over, or NULL when a scan begins.
 */
const struct region_list *tracker_armed(const struct dump *dump, const struct dump_task *task);
void tracker_set_armed(struct dump *dump, const struct dump_task *task, struct region_list *list);
/* From here on the pages are armed, and the images of the last dump are outdated unless this dump is completed. */
void tracker_arming(struct dump *dump);
/* Makes the next dump see these pages as changed. Returns 0 or -errno; then some may still count as unchanged. */
int tracker_disarm(const struct dump *dump, const struct dump_task *task, uint64_t address, uint64_t bytes);
/* The dump is complete. */
void tracker_commit(struct dump *dump);
