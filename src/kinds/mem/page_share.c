/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How pages that fork shares are found. In a tree of several tasks the page frame numbers of /proc/PID/pagemap tell
 * which tasks still share a page since a fork: the first task that has it writes it, the others refer to it. A page
 * that is mapped once only (the exclusive bit) needs no look-up.
 */
#include <fcntl.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/page_runs.h"
#include "kinds/mem/track.h"
#include "model/page_sink.h"

enum {
	PAGE_BYTES = 4096,
	/* Below this many shared pages the images stay in the plain format that every reader knows. */
	SHARED_PAGES_WORTH_AN_EXTENSION = 1024,
};

enum {
	PAGEMAP_FRAME_BITS = 55,
	PAGEMAP_BIT_EXCLUSIVE = 56,
	PAGEMAP_BIT_PRESENT = 63,
};

/* Open addressing, page frame to the page that the images hold; a tree has millions of pages. */
struct frame_table {
	struct frame {
		uint64_t frame; /* 0 = empty */
		struct dump_task *task;
		uint64_t address;
	} * slots;
	size_t mask, used;
};

static struct frame *frame_slot(const struct frame_table *table, uint64_t frame)
{
	size_t at = (frame * 0x9e3779b97f4a7c15ULL) >> 20 & table->mask;

	while (table->slots[at].frame && table->slots[at].frame != frame)
		at = (at + 1) & table->mask;
	return &table->slots[at];
}

static void frame_table_grow(struct frame_table *table)
{
	struct frame_table larger = {.mask = table->slots ? table->mask * 2 + 1 : 4095};

	larger.slots = xcalloc(larger.mask + 1, sizeof(*larger.slots));
	for (size_t i = 0; table->slots && i <= table->mask; i++)
		if (table->slots[i].frame)
			*frame_slot(&larger, table->slots[i].frame) = table->slots[i];
	larger.used = table->used;
	free(table->slots);
	*table = larger;
}

static uint64_t frame_number(uint64_t pagemap_entry)
{
	return pagemap_entry & ((1ULL << PAGEMAP_FRAME_BITS) - 1);
}

static bool is_shared_candidate(uint64_t pagemap_entry)
{
	return (pagemap_entry >> PAGEMAP_BIT_PRESENT & 1) && !(pagemap_entry >> PAGEMAP_BIT_EXCLUSIVE & 1) &&
	       frame_number(pagemap_entry);
}

/* The pagemap entries of all runs of a task, one after another. */
static int read_entries(struct dump *dump, struct dump_task *task, void *context)
{
	uint64_t **all = context;
	const struct memory_map *memory = task->memory;
	uint64_t pages = 0, done = 0;
	_cleanup_fd_ int fd = openat(task->proc_dirfd, "pagemap", O_RDONLY | O_CLOEXEC);

	if (!memory)
		return 0;
	for (size_t i = 0; i < memory->run_count; i++)
		pages += memory->runs[i].pages;
	all[task->index] = xcalloc(pages + 1, sizeof(uint64_t));
	if (fd < 0)
		return memory->running ? 0 : -errno;
	for (size_t i = 0; i < memory->run_count; i++) {
		const struct page_run *run = &memory->runs[i];
		int error = pread_full(fd, all[task->index] + done, run->pages * sizeof(uint64_t),
				       run->address / PAGE_BYTES * sizeof(uint64_t));
		if (error < 0 && !memory->running)
			return error;
		if (error < 0) /* it has ended: its pages are nobody's */
			memset(all[task->index] + done, 0, run->pages * sizeof(uint64_t));
		done += run->pages;
	}
	return 0;
}

static void take_page(struct frame_table *table, struct dump_task *task, struct page_run run, uint64_t entry,
		      uint64_t *ret_shared)
{
	if (is_shared_candidate(entry)) {
		run.shared = true;
		if (table->used * 2 >= table->mask)
			frame_table_grow(table);
		uint64_t number = frame_number(entry);
		struct frame *frame = frame_slot(table, number);
		if (frame->frame && frame->task != task && !run.in_parent) {
			run.source = frame->task;
			run.source_address = frame->address;
			++*ret_shared;
		} else if (!frame->frame) {
			*frame = (struct frame){number, task, run.address};
			table->used++;
		}
	}
	page_runs_add(task->memory, &run);
}

/* Nearly every page of a fork: the same task has it, behind the page before. */
static bool goes_on(const struct frame_table *table, const struct page_run *last, uint64_t entry)
{
	if (!last->source || !is_shared_candidate(entry))
		return false;
	const struct frame *frame = frame_slot(table, frame_number(entry));
	return frame->frame && frame->task == last->source &&
	       frame->address == last->source_address + last->pages * PAGE_BYTES;
}

/* Replaces the runs of @task by finer ones that say which pages another task holds already. */
static void find_shared_pages(struct dump_task *task, const uint64_t *entries, struct frame_table *table,
			      uint64_t *ret_shared)
{
	struct memory_map *memory = task->memory;
	_cleanup_free_ struct page_run *whole = TAKE_POINTER(memory->runs);
	size_t whole_count = memory->run_count;

	memory->run_count = memory->run_capacity = 0;
	for (size_t i = 0; i < whole_count; i++)
		for (uint64_t p = 0; p < whole[i].pages; p++) {
			struct page_run run = whole[i], *last = p ? &memory->runs[memory->run_count - 1] : NULL;
			uint64_t entry = *entries++;
			if (last && goes_on(table, last, entry)) {
				last->pages++;
				++*ret_shared;
				continue;
			}
			run.address += p * PAGE_BYTES;
			run.pages = 1;
			take_page(table, task, run, entry, ret_shared);
		}
}

static int find_all_shared(struct dump *dump, uint64_t *ret_shared)
{
	_cleanup_free_ uint64_t **entries = xcalloc(dump->task_count, sizeof(*entries));
	struct frame_table table = {};
	struct dump_task *failed;
	int error = memory_for_tasks(dump, read_entries, entries, &failed);

	if (error < 0)
		fail_errno(&dump->failure, error, "task-pagemap", dump_task_name(dump, failed), NULL,
			   "cannot read its pagemap");
	frame_table_grow(&table);
	for (size_t i = 0; i < dump->task_count; i++) {
		if (dump->tasks[i]->memory && !error)
			find_shared_pages(dump->tasks[i], entries[i], &table, ret_shared);
		free(entries[i]);
	}
	free(table.slots);
	return error;
}

/* Few shared pages: write them in full, as every reader understands it. */
static void forget_sources(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		struct memory_map *memory = dump->tasks[i]->memory;
		if (!memory)
			continue;
		_cleanup_free_ struct page_run *runs = TAKE_POINTER(memory->runs);
		size_t count = memory->run_count;
		memory->run_count = memory->run_capacity = 0;
		for (size_t r = 0; r < count; r++) {
			runs[r].source = NULL;
			page_runs_add(memory, &runs[r]);
		}
	}
}

static bool may_refer_to_others(const struct dump_options *options)
{
	return !options->format_plain && !(options->page_sink && options->page_sink->ops->keeps_pagemap);
}

int page_share_find(struct dump *dump)
{
	uint64_t shared = 0, equal = 0;
	size_t live = 0;

	for (size_t i = 0; i < dump->task_count; i++)
		live += dump->tasks[i]->memory != NULL;
	if (live < 2)
		return 0;
	int error = find_all_shared(dump, &shared);
	/* In a pre-dump the tree runs: what is equal now may not be so when it is read. */
	if (!error && !dump->only_explain && !dump->options->pre_dump && may_refer_to_others(dump->options))
		error = page_equal_find(dump, &equal);
	if (!error && (shared + equal < SHARED_PAGES_WORTH_AN_EXTENSION || !may_refer_to_others(dump->options)))
		forget_sources(dump);
	log_info("pages shared since a fork: %lu, equal: %lu", shared, equal);
	return error;
}

/* Keeps of a task that runs what is not another's. What cannot be disarmed is written: nobody else may have it. */
static void skip_sources(struct dump *dump, struct dump_task *task)
{
	struct memory_map *memory = task->memory;
	_cleanup_free_ struct page_run *runs = TAKE_POINTER(memory->runs);
	size_t count = memory->run_count;

	memory->run_count = memory->run_capacity = 0;
	for (size_t r = 0; r < count; r++) {
		if (runs[r].source && !tracker_disarm(dump, task, runs[r].address, runs[r].pages * PAGE_BYTES))
			continue;
		runs[r].source = NULL;
		page_runs_add(memory, &runs[r]);
	}
}

int memory_skip_shared(struct dump *dump)
{
	int error = page_share_find(dump);

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			skip_sources(dump, dump->tasks[i]);
	return error;
}

bool memory_has_shared_runs(const struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t r = 0; dump->tasks[i]->memory && r < dump->tasks[i]->memory->run_count; r++)
			if (dump->tasks[i]->memory->runs[r].source)
				return true;
	return false;
}
