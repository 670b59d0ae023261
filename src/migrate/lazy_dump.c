/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree is stopped (SIGSTOP) and keeps its memory, so that a server that dies loses nothing: `criu resume` lets it
 * run again, if nothing runs on the other side. Pages may be asked for again and again until the other side is done.
 */
#include "migrate/lazy_dump.h"

#include <fcntl.h>
#include <stdio.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "kinds/mem/memory.h"
#include "migrate/page_protocol.h"
#include "migrate/stream.h"
#include "model/dump.h"

enum { PAGE_BYTES = 4096, MAX_PAGES = 256 };

struct left_run {
	uint64_t address, pages;
};

struct left_task {
	uint32_t pid;
	int memory_fd; /* /proc/PID/mem */
	struct left_run *runs;
	size_t count, capacity;
};

struct lazy_dump {
	struct left_task *tasks;
	size_t count;
	char *buffer;
};

struct lazy_dump *lazy_dump_new(void)
{
	struct lazy_dump *lazy = xcalloc(1, sizeof(*lazy));

	lazy->buffer = xcalloc(MAX_PAGES, PAGE_BYTES);
	return lazy;
}

int lazy_dump_note(struct lazy_dump *lazy, struct dump *dump)
{
	lazy->tasks = xcalloc(dump->task_count, sizeof(*lazy->tasks));
	for (size_t i = 0; i < dump->task_count; i++) {
		const struct memory_map *memory = dump->tasks[i]->memory;
		if (!memory)
			continue;
		struct left_task *task = &lazy->tasks[lazy->count++];
		task->pid = (uint32_t)dump->tasks[i]->pid;
		task->memory_fd = openat(dump->tasks[i]->proc_dirfd, "mem", O_RDONLY | O_CLOEXEC);
		if (task->memory_fd < 0)
			return fail_errno(&dump->failure, errno, "task-memory", dump_task_name(dump, dump->tasks[i]),
					  NULL, "cannot open its memory");
		for (size_t r = 0; r < memory->run_count; r++) {
			if (!memory->runs[r].left)
				continue;
			ARRAY_GROW(task->runs, task->count, task->capacity);
			task->runs[task->count++] = (struct left_run){memory->runs[r].address, memory->runs[r].pages};
		}
	}
	return 0;
}

static const struct left_task *find_task(const struct lazy_dump *lazy, uint32_t pid)
{
	for (size_t i = 0; i < lazy->count; i++)
		if (lazy->tasks[i].pid == pid)
			return &lazy->tasks[i];
	return NULL;
}

/* How many of the pages lie in a row in one run. */
static uint64_t pages_in_row(const struct left_task *task, const struct page_request *request)
{
	size_t low = 0, high = task->count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (task->runs[middle].address + task->runs[middle].pages * PAGE_BYTES <= request->address)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == task->count || task->runs[low].address > request->address)
		return 0;
	uint64_t left = task->runs[low].pages - (request->address - task->runs[low].address) / PAGE_BYTES;
	uint64_t pages = request->pages < left ? request->pages : left;
	return pages < MAX_PAGES ? pages : MAX_PAGES;
}

static int bad(struct stream *stream, struct failure *failure, const char *cause, uint64_t number)
{
	return fail(failure, EPROTO, "page-protocol", stream_peer(stream), "are the images those of this dump?",
		    "%s (0x%llx)", cause, (unsigned long long)number);
}

static int give_pages(struct lazy_dump *lazy, struct stream *stream, const struct page_request *request,
		      struct failure *failure)
{
	struct page_request answer = *request;
	enum page_space space;
	uint32_t pid;

	if (page_destination_parse(request->destination, &space, &pid) < 0 || space != PAGE_SPACE_PROCESS)
		return bad(stream, failure, "it asks for a destination that cannot be", request->destination);
	const struct left_task *task = find_task(lazy, pid);
	if (!task)
		return bad(stream, failure, "it asks for a process that was not dumped", pid);
	if (page_request_check_range(request, space) < 0)
		return bad(stream, failure, "it asks for pages out of range", request->address);
	answer.command = PAGE_COMMAND_ADD_FLAGS;
	answer.flags = PAGEMAP_PRESENT;
	answer.pages = pages_in_row(task, request);
	if (!answer.pages)
		return bad(stream, failure, "it asks for a page that is not here", request->address);
	int error = pread_full(task->memory_fd, lazy->buffer, answer.pages * PAGE_BYTES, (off_t)request->address);
	if (error < 0)
		return fail_errno(failure, error, "task-memory", NULL, "has somebody ended the tree?",
				  "cannot read the memory of process %u", pid);
	error = page_request_send(stream, &answer);
	if (!error)
		error = stream_write_full(stream, lazy->buffer, answer.pages * PAGE_BYTES);
	return error ? stream_fail(stream, error, failure) : 0;
}

/* Returns 1 when the other side has everything, or a failure. */
static int serve(struct lazy_dump *lazy, struct stream *stream, struct failure *failure)
{
	struct page_request request;
	const int32_t status = 0;

	for (;;) {
		int error = page_request_receive(stream, &request);
		if (error)
			return stream_fail(stream, error, failure);
		if (request.command == PAGE_COMMAND_CLOSE || request.command == PAGE_COMMAND_FORCE_CLOSE) {
			/* The other side is done: whether it hears us does not matter. */
			stream_write_full(stream, &status, sizeof(status));
			return 1;
		}
		error = request.command == PAGE_COMMAND_GET
				? give_pages(lazy, stream, &request, failure)
				: bad(stream, failure, "it sends a command that a lazy dump does not have",
				      request.command);
		if (error)
			return error;
	}
}

int lazy_dump_serve(struct lazy_dump *lazy, const struct page_link_options *link, int listen_fd,
		    struct failure *failure)
{
	for (;;) {
		_cleanup_stream_ struct stream *stream = NULL;
		int error = page_link_accept(link, listen_fd, failure, &stream);
		if (!error)
			error = serve(lazy, stream, failure);
		if (error > 0)
			return 0;
		if (listen_fd < 0)
			return error;
		char line[600];
		log_warn("%s; the memory is kept, waiting for the next connection",
			 failure_line(failure, line, sizeof(line)));
		failure_clear(failure);
	}
}

void lazy_dump_free(struct lazy_dump *lazy)
{
	if (!lazy)
		return;
	for (size_t i = 0; i < lazy->count; i++) {
		close_fd_pointer(&lazy->tasks[i].memory_fd);
		free(lazy->tasks[i].runs);
	}
	free(lazy->tasks);
	free(lazy->buffer);
	free(lazy);
}
