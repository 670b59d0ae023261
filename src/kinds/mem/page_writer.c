/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies the pages of the frozen tree into pages-<id>.img files, or hands them to a page sink, with all cores and
 * from outside: the task itself could write its memory with one copy less, but its limits (file size, seccomp filters,
 * memory cgroup) would apply.
 *
 * The work is a list of pieces, each with its place in its file, taken in batches by the threads. Pages that are all
 * zero are left as holes in the file. In a tmpfs of huge pages a batch is one of them: the first write to a huge page
 * that covers only a part of it makes the kernel clear all of it first.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/fd.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/page_read.h"
#include "kinds/mem/page_send.h"
#include "model/page_sink.h"

#include "pagemap.pb-c.h"

enum {
	PAGE_BYTES = 4096,
	HOLE_BYTES = 64 * 1024,
	WORTH_ALLOCATING_BYTES = 1 << 20,
	MAX_THREADS = 16,
	CLAIMS_OF_A_THREAD = 64,
	MOST_CLAIMED = 32,
	HUGE_PAGE_BYTES = 2 << 20,
	MOST_BYTES = HUGE_PAGE_BYTES, /* of a piece */
};

struct pages_file {
	int fd;         /* -1: none */
	bool huge;      /* its blocks are huge pages */
	bool allocated; /* its blocks exist before they are written */
};

struct page_writer {
	struct page_piece *pieces;
	size_t count, capacity;
	size_t opened;            /* tasks before this one have their file or space */
	struct pages_file *files; /* by index of the task */
	struct page_sink *sink;   /* NULL: into the files */
	size_t claim;             /* pieces that a thread takes at once */
	atomic_size_t next;
	atomic_uint_fast64_t done_bytes;
	uint64_t total_bytes;
	atomic_int error;
	atomic_int error_writing; /* 1: the file or sink, 0: the task's memory */
};

struct job {
	struct page_writer *writer;
	const struct dump_options *reports_to; /* the one job that tells the user; NULL in the others */
	char *buffer;
};

/* What one read and one write may have that begin at @offset of the task's pages. */
static size_t room_bytes(const struct page_writer *writer, const struct dump_task *task, uint64_t offset)
{
	return !writer->sink && writer->files[task->index].huge ? HUGE_PAGE_BYTES - offset % HUGE_PAGE_BYTES
								: PAGE_BUFFER_BYTES;
}

static bool is_zero_page(const char *page)
{
	const uint64_t *words = (const uint64_t *)page;

	return !words[0] && !memcmp(page, page + sizeof(uint64_t), PAGE_BYTES - sizeof(uint64_t));
}

static size_t count_pages_alike(const char *buffer, size_t bytes, bool zero)
{
	size_t at = 0;

	while (at < bytes && is_zero_page(buffer + at) == zero)
		at += PAGE_BYTES;
	return at;
}

/*
 * Writes the buffer but for its zero pages. The file has its full size already. Where it has its blocks too, the zeros
 * are there, and only a hole that is worth it is made: each one cuts the file's extent, or the huge page.
 */
static int write_pages(const struct pages_file *file, const char *buffer, size_t bytes, off_t offset)
{
	for (size_t at = 0, end; at < bytes; at = end) {
		size_t zeros = count_pages_alike(buffer + at, bytes - at, true);
		end = at + zeros;
		if (file->allocated && zeros >= HOLE_BYTES)
			fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset + at, zeros);
		if (zeros)
			continue;
		end += count_pages_alike(buffer + at, bytes - at, false);
		int error = pwrite_full(file->fd, buffer + at, end - at, offset + at);
		if (error < 0)
			return error;
	}
	return 0;
}

/* What page_read() has put into the buffer. */
static int put_batch(struct page_writer *writer, const struct page_piece *pieces, size_t count, const char *buffer,
		     size_t bytes)
{
	struct page_sink *sink = writer->sink;

	if (!sink)
		return write_pages(&writer->files[pieces->task->index], buffer, bytes, pieces->offset);
	for (size_t i = 0; i < count; buffer += pieces[i++].bytes) {
		int error = sink->ops->pages(sink, PAGE_SPACE_PROCESS, pieces[i].task->pid, pieces[i].address, buffer,
					     pieces[i].bytes);
		if (error < 0)
			return error;
	}
	return 0;
}

static void report_progress(const struct job *job)
{
	if (!job->reports_to || !job->reports_to->progress)
		return;
	const struct progress progress = {
		.stage = "memory",
		.done_bytes = atomic_load(&job->writer->done_bytes),
		.total_bytes = job->writer->total_bytes,
	};
	job->reports_to->progress(job->reports_to->context, &progress);
}

static void stop(struct page_writer *writer, int error, bool writing)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&writer->error, &none, error) && writing)
		atomic_store(&writer->error_writing, 1);
}

/* A whole piece into memory of the sink, which takes it as it is. Returns 1 (pieces) or -errno. */
static int lend_piece(struct page_writer *writer, const struct page_piece *piece)
{
	struct page_sink *sink = writer->sink;
	struct page_buffer *buffer;
	size_t bytes = 0;
	int error = sink->ops->lend(sink, &buffer);

	if (error < 0) {
		stop(writer, error, true);
		return error;
	}
	int count = page_read(piece, 1, (char *)buffer->data, PAGE_BUFFER_BYTES, &bytes);
	error = sink->ops->pages_lent(sink, PAGE_SPACE_PROCESS, piece->task->pid, piece->address, buffer,
				      count < 0 ? 0 : bytes);
	if (count < 0)
		error = count;
	if (error < 0)
		stop(writer, error, count >= 0);
	atomic_fetch_add(&writer->done_bytes, bytes);
	return error < 0 ? error : count;
}

/* As many pieces as fit into the buffer. Returns how many were written, or -errno. */
static int write_batch(struct job *job, const struct page_piece *pieces, size_t left)
{
	struct page_writer *writer = job->writer;
	size_t room = room_bytes(writer, pieces->task, pieces->offset), bytes = 0;

	if (writer->sink && writer->sink->ops->lend && pieces->bytes == PAGE_BUFFER_BYTES)
		return lend_piece(writer, pieces);
	int count = page_read(pieces, left, job->buffer, room, &bytes);
	int error = count < 0 ? count : put_batch(writer, pieces, count, job->buffer, bytes);
	if (error < 0)
		stop(writer, error, count >= 0);
	atomic_fetch_add(&writer->done_bytes, bytes);
	return error < 0 ? error : count;
}

static void *write_batches(void *argument)
{
	struct job *job = argument;
	struct page_writer *writer = job->writer;

	while (!atomic_load(&writer->error)) {
		size_t first = atomic_fetch_add(&writer->next, writer->claim);
		size_t end = first + writer->claim < writer->count ? first + writer->claim : writer->count;
		while (first < end) {
			int count = write_batch(job, &writer->pieces[first], end - first);
			if (count < 0)
				return NULL;
			first += count;
		}
		report_progress(job);
		if (end == writer->count)
			return NULL;
	}
	return NULL;
}

static void add_pieces(struct page_writer *writer, struct dump_task *task, const struct page_run *run, uint64_t *offset)
{
	for (uint64_t done = 0; done < run->pages * PAGE_BYTES;) {
		struct page_piece piece = page_piece_of_run(task, run, done, room_bytes(writer, task, *offset));
		piece.offset = *offset;
		ARRAY_GROW(writer->pieces, writer->count, writer->capacity);
		writer->pieces[writer->count++] = piece;
		*offset += piece.bytes;
		writer->total_bytes += piece.bytes;
		done += piece.bytes;
	}
}

static int write_pagemap(struct dump *dump, struct dump_task *task)
{
	struct memory_map *memory = task->memory;
	struct image *image;
	PagemapHead head = PAGEMAP_HEAD__INIT;
	int error = image_create(dump->images_dirfd, &dump->failure, IMAGE_PAGEMAP, task->pid, &image);

	if (error < 0)
		return error;
	head.pages_id = memory->pages_id;
	image_write(image, &head.base);
	for (size_t i = 0; i < memory->run_count; i++) {
		const struct page_run *run = &memory->runs[i];
		PagemapEntry entry = PAGEMAP_ENTRY__INIT;
		entry.vaddr = run->address;
		entry.has_nr_pages = entry.has_flags = true;
		entry.nr_pages = run->pages;
		entry.flags = page_run_flags(run);
		if (run->source) {
			entry.has_source_pid = entry.has_source_vaddr = true;
			entry.source_pid = run->source->pid;
			entry.source_vaddr = run->source_address;
		}
		image_write(image, &entry.base);
	}
	return image_close(&image);
}

static int create_pages_file(struct dump *dump, const struct memory_map *memory, struct pages_file *file)
{
	char name[64];
	struct stat stat;

	image_name(IMAGE_PAGES, memory->pages_id, name, sizeof(name));
	file->fd = openat(dump->images_dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file->fd < 0)
		return fail_errno(&dump->failure, errno, "image-create", name, NULL, "cannot create the image file");
	file->huge = !fstat(file->fd, &stat) && stat.st_blksize == HUGE_PAGE_BYTES;
	return 0;
}

/*
 * Blocks in advance: a write to ext4 then takes half the time, one to huge pages of tmpfs a little less. In a tmpfs of
 * small pages it would only move the work to one thread.
 */
static int size_pages_file(struct dump *dump, const struct memory_map *memory, struct pages_file *file, uint64_t size)
{
	char name[64];
	struct statfs filesystem;

	image_name(IMAGE_PAGES, memory->pages_id, name, sizeof(name));
	if (ftruncate(file->fd, size) < 0)
		return fail_errno(&dump->failure, errno, "image-write", name, NULL, "cannot give it its size");
	if (size >= WORTH_ALLOCATING_BYTES && !fstatfs(file->fd, &filesystem) &&
	    (filesystem.f_type != TMPFS_MAGIC || file->huge))
		file->allocated = fallocate(file->fd, 0, 0, size) == 0;
	return 0;
}

static int prepare(struct dump *dump, struct page_writer *writer)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		struct memory_map *memory = task->memory;
		uint64_t bytes = 0;

		if (!memory)
			continue;
		int error =
			writer->sink ? page_send_open(dump, task) : create_pages_file(dump, memory, &writer->files[i]);
		if (error < 0)
			return error;
		writer->opened = i + 1;
		for (size_t r = 0; r < memory->run_count; r++)
			if (page_run_is_written(&memory->runs[r]))
				add_pieces(writer, task, &memory->runs[r], &bytes);
		error = writer->sink ? 0 : size_pages_file(dump, memory, &writer->files[i], bytes);
		if (error < 0)
			return error;
	}
	return 0;
}

static int run_threads(struct dump *dump, struct page_writer *writer)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t count = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : cores, started = 1;
	struct job jobs[MAX_THREADS];
	pthread_t threads[MAX_THREADS];
	char *buffers = aligned_alloc(PAGE_BYTES, count * MOST_BYTES);

	/* Many small ones, as they are read together; few large ones, as the last thread to end is waited for. */
	writer->claim = writer->count / (CLAIMS_OF_A_THREAD * count);
	writer->claim = writer->claim < 1 ? 1 : writer->claim > MOST_CLAIMED ? MOST_CLAIMED : writer->claim;
	if (!buffers)
		return fail(&dump->failure, ENOMEM, "out-of-memory", NULL, NULL, "no memory for the page buffers");
	for (size_t i = 0; i < count; i++)
		jobs[i] = (struct job){writer, i ? NULL : dump->options, buffers + i * MOST_BYTES};
	while (started < count && !pthread_create(&threads[started], NULL, write_batches, &jobs[started]))
		started++;
	write_batches(&jobs[0]);
	for (size_t i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	free(buffers);
	int error = atomic_load(&writer->error);
	if (error && writer->sink && atomic_load(&writer->error_writing))
		return page_send_failed(dump, error);
	if (error && atomic_load(&writer->error_writing))
		return fail_errno(&dump->failure, error, "image-write", "pages image",
				  error == -ENOSPC ? "free space, or choose another --images-dir" : NULL,
				  "cannot write memory pages");
	if (error)
		return fail_errno(&dump->failure, error, "task-memory", NULL, NULL, "cannot read the memory of a task");
	return 0;
}

/* The spaces that were opened are closed after a failure too. */
static int finish(struct dump *dump, struct page_writer *writer, int error)
{
	for (size_t i = 0; i < writer->opened; i++) {
		struct dump_task *task = dump->tasks[i];
		int closed = 0;
		if (writer->sink && task->memory)
			closed = page_send_close(dump, task);
		else if (writer->files[i].fd >= 0 && close(writer->files[i].fd) < 0)
			closed = fail_errno(&dump->failure, errno, "image-write", "pages image", NULL,
					    "cannot close it");
		error = error ? error : closed;
	}
	free(writer->files);
	free(writer->pieces);
	return error;
}

static void count_pages(struct dump *dump, struct memory_map *memory)
{
	memory->pages_id = ++dump->last_pages_id;
	for (size_t i = 0; i < memory->run_count; i++) {
		const struct page_run *run = &memory->runs[i];
		dump->stats.pages_scanned += run->pages;
		dump->stats.pages_written += page_run_is_written(run) ? run->pages : 0;
		dump->stats.pages_skipped_parent += run->in_parent ? run->pages : 0;
	}
}

static int write_all_pages(struct dump *dump)
{
	struct page_writer writer = {.sink = dump->options->page_sink};

	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->memory)
			count_pages(dump, dump->tasks[i]->memory);
	if (writer.sink && writer.sink->ops->ordered)
		return page_send_in_order(dump);
	writer.files = xcalloc(dump->task_count, sizeof(*writer.files));
	for (size_t i = 0; i < dump->task_count; i++)
		writer.files[i].fd = -1;
	int error = prepare(dump, &writer);
	if (!error && writer.count)
		error = run_threads(dump, &writer);
	return finish(dump, &writer, error);
}

int memory_write(struct dump *dump)
{
	const struct page_sink *sink = dump->options->page_sink;
	int error = write_all_pages(dump);

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory && !(sink && sink->ops->keeps_pagemap))
			error = write_pagemap(dump, dump->tasks[i]);
	return error;
}
