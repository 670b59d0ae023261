/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that fork has un-shared, but that hold the same: hundreds of workers write the same values to their stacks and
 * the same pointers to their data. The images of a tree of many small processes consist of little else.
 *
 * It costs one more reading of these pages, so only tasks with few pages of their own are looked at. Two pages are
 * taken as equal when 128 bits of XXH3 are; each dump salts them with a random number, so that nobody can prepare two
 * different pages that look the same.
 */
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "base/fd.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/page_read.h"
#include "kinds/mem/page_runs.h"

enum {
	PAGE_BYTES = 4096,
	/* More tasks than this of fewer pages than this: below, the rest of the images is what counts. */
	SMALL_TASKS = 8,
	SMALL_TASK_PAGES = PAGE_PIECE_BYTES / PAGE_BYTES,
};

struct known_page {
	XXH128_hash_t content;
	struct dump_task *task; /* NULL = empty slot */
	uint64_t address;
};

struct content_table {
	struct known_page *slots;
	size_t mask;
	uint64_t salt;
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
	size_t count = 0, bytes;

	for (size_t i = 0; i < memory->run_count; i++)
		if (page_run_is_written(&memory->runs[i]))
			pieces[count++] = page_piece_of_run(task, &memory->runs[i], 0);
	for (size_t first = 0; first < count;) {
		int got = page_read(&pieces[first], count - first, buffer, &bytes);
		if (got < 0)
			return got;
		first += got;
		buffer += bytes;
	}
	return 0;
}

/*
 * Another task may refer to a page that fork shares, so only pages of this task alone become references themselves:
 * there are no chains.
 */
static void look_up_page(struct content_table *table, struct dump_task *task, const char *content, struct page_run *run,
			 uint64_t *ret_found)
{
	struct known_page *known;
	XXH128_hash_t hash = XXH3_128bits_withSeed(content, PAGE_BYTES, table->salt);

	known = content_slot(table, hash);
	if (!known->task) {
		*known = (struct known_page){hash, task, run->address};
	} else if (known->task != task && !run->shared) {
		run->source = known->task;
		run->source_address = known->address;
		++*ret_found;
	}
}

static int look_up_task(struct content_table *table, struct dump_task *task, char *buffer, uint64_t *ret_found)
{
	struct memory_map *memory = task->memory;
	int error = read_own_pages(task, buffer);

	if (error < 0)
		return error;
	_cleanup_free_ struct page_run *whole = TAKE_POINTER(memory->runs);
	size_t whole_count = memory->run_count;
	memory->run_count = memory->run_capacity = 0;
	for (size_t i = 0; i < whole_count; i++) {
		if (!page_run_is_written(&whole[i])) {
			page_runs_add(memory, &whole[i]);
			continue;
		}
		for (uint64_t p = 0; p < whole[i].pages; p++, buffer += PAGE_BYTES) {
			struct page_run run = whole[i];
			run.address += p * PAGE_BYTES;
			run.pages = 1;
			look_up_page(table, task, buffer, &run, ret_found);
			page_runs_add(memory, &run);
		}
	}
	return 0;
}

int page_equal_find(struct dump *dump, uint64_t *ret_found)
{
	struct content_table table = {.mask = 1023};
	size_t tasks = 0, pages = 0;
	int error = 0;

	for (size_t i = 0; i < dump->task_count; i++) {
		uint64_t own = count_own_pages(dump->tasks[i]);
		tasks += own && own <= SMALL_TASK_PAGES;
		pages += own <= SMALL_TASK_PAGES ? own : 0;
	}
	if (tasks <= SMALL_TASKS || getrandom(&table.salt, sizeof(table.salt), GRND_NONBLOCK) != sizeof(table.salt))
		return 0;
	while (table.mask < pages * 2)
		table.mask = table.mask * 2 + 1;
	_cleanup_free_ char *buffer = xrealloc_array(NULL, SMALL_TASK_PAGES, PAGE_BYTES);
	table.slots = xcalloc(table.mask + 1, sizeof(*table.slots));
	for (size_t i = 0; i < dump->task_count && !error; i++) {
		uint64_t own = count_own_pages(dump->tasks[i]);
		if (!own || own > SMALL_TASK_PAGES)
			continue;
		error = look_up_task(&table, dump->tasks[i], buffer, ret_found);
		if (error < 0)
			error = fail_errno(&dump->failure, error, "task-memory", dump_task_name(dump, dump->tasks[i]),
					   NULL, "cannot read its memory");
	}
	free(table.slots);
	return error;
}
