/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sink that wants order is fed here by one thread. Any other gets its pages from the threads of page_writer.c;
 * here its spaces are opened and closed.
 */
#include "kinds/mem/page_send.h"

#include "base/fd.h"
#include "image/image.h"
#include "kinds/mem/page_read.h"
#include "model/page_sink.h"

enum { PAGE_BYTES = 4096 };

uint32_t page_run_flags(const struct page_run *run)
{
	uint32_t where = run->in_parent ? PAGEMAP_IN_PARENT
			 : run->source  ? PAGEMAP_SHARED
			 : run->left    ? 0
					: PAGEMAP_PRESENT;

	return where | (run->huge ? PAGEMAP_HUGE : 0) |
	       ((page_run_is_written(run) || run->left) && run->lazy ? PAGEMAP_LAZY : 0);
}

int page_send_failed(struct dump *dump, int error)
{
	return fail_errno(&dump->failure, error, PAGE_SINK_FAILED, dump->options->page_sink->name, NULL,
			  "cannot hand memory pages over");
}

static int send_entry(struct dump *dump, struct dump_task *task, const struct page_run *run)
{
	struct page_sink *sink = dump->options->page_sink;
	int error = sink->ops->keeps_pagemap ? sink->ops->entry(sink, PAGE_SPACE_PROCESS, task->pid, run->address,
								run->pages, page_run_flags(run))
					     : 0;

	return error ? page_send_failed(dump, error) : 0;
}

int page_send_open(struct dump *dump, struct dump_task *task)
{
	struct page_sink *sink = dump->options->page_sink;
	int error = sink->ops->open(sink, &dump->failure, PAGE_SPACE_PROCESS, task->pid, task->memory->pages_id);

	for (size_t i = 0; !error && !sink->ops->ordered && i < task->memory->run_count; i++)
		error = send_entry(dump, task, &task->memory->runs[i]);
	return error;
}

int page_send_close(struct dump *dump, struct dump_task *task)
{
	struct page_sink *sink = dump->options->page_sink;
	int error = sink->ops->close(sink, PAGE_SPACE_PROCESS, task->pid);

	return error ? page_send_failed(dump, error) : 0;
}

static void report_sent(const struct dump *dump, struct progress *progress, size_t bytes)
{
	progress->done_bytes += bytes;
	if (dump->options->progress)
		dump->options->progress(dump->options->context, progress);
}

static int send_run(struct dump *dump, struct dump_task *task, const struct page_run *run, char *buffer,
		    struct progress *progress)
{
	struct page_sink *sink = dump->options->page_sink;
	int error = send_entry(dump, task, run);
	uint64_t done = 0;
	size_t bytes;

	while (!error && page_run_is_written(run)) {
		struct page_piece piece = page_piece_of_run(task, run, done, PAGE_BUFFER_BYTES);
		if (!piece.bytes)
			break;
		int got = page_read(&piece, 1, buffer, PAGE_BUFFER_BYTES, &bytes);
		if (got < 0)
			return fail_errno(&dump->failure, got, "task-memory", dump_task_name(dump, task), NULL,
					  "cannot read its memory");
		error = sink->ops->pages(sink, PAGE_SPACE_PROCESS, task->pid, piece.address, buffer, bytes);
		if (error)
			return page_send_failed(dump, error);
		done += bytes;
		report_sent(dump, progress, bytes);
	}
	return error;
}

static uint64_t bytes_to_send(const struct dump *dump)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < dump->task_count; i++) {
		const struct memory_map *memory = dump->tasks[i]->memory;
		for (size_t r = 0; memory && r < memory->run_count; r++)
			pages += page_run_is_written(&memory->runs[r]) ? memory->runs[r].pages : 0;
	}
	return pages * PAGE_BYTES;
}

int page_send_in_order(struct dump *dump)
{
	_cleanup_free_ char *buffer = xcalloc(1, PAGE_BUFFER_BYTES);
	struct progress progress = {.stage = "memory", .total_bytes = bytes_to_send(dump)};
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++) {
		struct dump_task *task = dump->tasks[i];
		if (!task->memory)
			continue;
		error = page_send_open(dump, task);
		if (error < 0)
			return error;
		for (size_t r = 0; r < task->memory->run_count && !error; r++)
			error = send_run(dump, task, &task->memory->runs[r], buffer, &progress);
		int closed = page_send_close(dump, task);
		error = error ? error : closed;
	}
	return error;
}
