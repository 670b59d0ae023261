/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that fork has un-shared, but that hold the same: hundreds of workers write the same values to their stacks and
 * the same pointers to their data. The images of a tree of many small processes consist of little else.
 *
 * It costs one more reading of these pages, so only tasks with few pages of their own are looked at; they are read and
 * hashed with all cores, and then compared in the order of tasks. Two pages are taken as equal when 128 bits of XXH3
 * are; each dump salts them with a random number, so that nobody can prepare two different pages that look the same.
 */
#include <string.h>
#include <sys/random.h>

#include "base/fd.h"
#include "base/hash.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/page_read.h"
#include "kinds/mem/page_runs.h"

enum {
	PAGE_BYTES = 4096,
	/* More tasks than this of fewer pages than this: below, the rest of the images is what counts. */
	SMALL_TASKS = 8,
	SMALL_TASK_PAGES = 256,
};

struct known_page {
	XXH128_hash_t content;
	struct dump_task *task; /* NULL = empty slot */
	uint64_t address;
};

struct content_table {
	struct known_page *slots;
	size_t mask;
};

struct hashing {
	uint64_t salt;
	XXH128_hash_t **hashes; /* by task: of its own pages, one after another; NULL = it is not looked at */
};

static struct known_page *content_slot(struct content_table *table, XXH128_hash_t content)
{
	size_t at = content.low64 & table->mask;

	while (table->slots[at].task && !XXH128_isEqual(table->slots[at].content, content))
		at = (at + 1) & table->mask;
	return &table->slots[at];
}

static uint64_t count_own_pages(const struct dump_task *task)
{
	uint64_t pages = 0;

	for (size_t i = 0; task->memory && i < task->memory->run_count; i++)
		pages += page_run_is_written(&task->memory->runs[i]) ? task->memory->runs[i].pages : 0;
	return pages;
}

/* The pages of all runs that are written, one after another. */
static int read_own_pages(struct dump_task *task, char *buffer)
{
	const struct memory_map *memory = task->memory;
	_cleanup_free_ struct page_piece *pieces = xcalloc(memory->run_count, sizeof(*pieces));
	size_t count = 0, room = SMALL_TASK_PAGES * PAGE_BYTES, bytes;

	for (size_t i = 0; i < memory->run_count; i++)
		if (page_run_is_written(&memory->runs[i]))
			pieces[count++] = page_piece_of_run(task, &memory->runs[i], 0, UINT64_MAX);
	for (size_t first = 0; first < count;) {
		int got = page_read(&pieces[first], count - first, buffer, room, &bytes);
		if (got < 0)
			return got;
		first += got;
		buffer += bytes;
		room -= bytes;
	}
	return 0;
}

static bool is_small(uint64_t own_pages)
{
	return own_pages && own_pages <= SMALL_TASK_PAGES;
}

static int hash_own_pages(struct dump *dump, struct dump_task *task, void *context)
{
	const struct hashing *hashing = context;
	uint64_t own = count_own_pages(task);

	if (!is_small(own))
		return 0;
	_cleanup_free_ char *buffer = xrealloc_array(NULL, own, PAGE_BYTES);
	XXH128_hash_t *hashes = hashing->hashes[task->index] = xcalloc(own, sizeof(*hashes));
	int error = read_own_pages(task, buffer);
	for (uint64_t p = 0; p < own && !error; p++)
		hashes[p] = XXH3_128bits_withSeed(buffer + p * PAGE_BYTES, PAGE_BYTES, hashing->salt);
	return error;
}

/*
 * Another task may refer to a page that fork shares, so only pages of this task alone become references themselves:
 * there are no chains.
 */
static void look_up_page(struct content_table *table, struct dump_task *task, XXH128_hash_t hash, struct page_run *run,
			 uint64_t *ret_found)
{
	struct known_page *known = content_slot(table, hash);

	if (!known->task) {
		*known = (struct known_page){hash, task, run->address};
	} else if (known->task != task && !run->shared) {
		run->source = known->task;
		run->source_address = known->address;
		++*ret_found;
	}
}

static void look_up_task(struct content_table *table, struct dump_task *task, const XXH128_hash_t *hash,
			 uint64_t *ret_found)
{
	struct memory_map *memory = task->memory;
	_cleanup_free_ struct page_run *whole = TAKE_POINTER(memory->runs);
	size_t whole_count = memory->run_count;

	memory->run_count = memory->run_capacity = 0;
	for (size_t i = 0; i < whole_count; i++) {
		if (!page_run_is_written(&whole[i])) {
			page_runs_add(memory, &whole[i]);
			continue;
		}
		for (uint64_t p = 0; p < whole[i].pages; p++) {
			struct page_run run = whole[i];
			run.address += p * PAGE_BYTES;
			run.pages = 1;
			look_up_page(table, task, *hash++, &run, ret_found);
			page_runs_add(memory, &run);
		}
	}
}

static void look_up_all(struct dump *dump, XXH128_hash_t **hashes, size_t pages, uint64_t *ret_found)
{
	struct content_table table = {.mask = 1023};

	while (table.mask < pages * 2)
		table.mask = table.mask * 2 + 1;
	table.slots = xcalloc(table.mask + 1, sizeof(*table.slots));
	for (size_t i = 0; i < dump->task_count; i++)
		if (hashes[i])
			look_up_task(&table, dump->tasks[i], hashes[i], ret_found);
	free(table.slots);
}

int page_equal_find(struct dump *dump, uint64_t *ret_found)
{
	struct hashing hashing = {};
	struct dump_task *failed;
	size_t tasks = 0, pages = 0;

	for (size_t i = 0; i < dump->task_count; i++) {
		uint64_t own = count_own_pages(dump->tasks[i]);
		tasks += is_small(own);
		pages += is_small(own) ? own : 0;
	}
	if (tasks <= SMALL_TASKS ||
	    getrandom(&hashing.salt, sizeof(hashing.salt), GRND_NONBLOCK) != sizeof(hashing.salt))
		return 0;
	hashing.hashes = xcalloc(dump->task_count, sizeof(*hashing.hashes));
	int error = memory_for_tasks(dump, hash_own_pages, &hashing, &failed);
	if (error < 0)
		fail_errno(&dump->failure, error, "task-memory", dump_task_name(dump, failed), NULL,
			   "cannot read its memory");
	else
		look_up_all(dump, hashing.hashes, pages, ret_found);
	for (size_t i = 0; i < dump->task_count; i++)
		free(hashing.hashes[i]);
	free(hashing.hashes);
	return error;
}
