/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies the pages of the frozen tree into pages-<id>.img files with all cores, from outside
 * (kernel-facts.md section 3: two threads reach what the machine can do, and the target's limits do not apply).
 *
 * The work is a list of pieces of at most PIECE_BYTES, each with its place in its file, taken in batches by the
 * threads. Pages that are all zero are left as holes in the file.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>

#include "base/fd.h"
#include "kinds/mem/memory.h"

#include "pagemap.pb-c.h"

enum {
	PAGE_BYTES = 4096,
	PIECE_BYTES = 256 * 1024,
	BATCH_PIECES = 256,
	MAX_THREADS = 16,
};

struct piece {
	struct dump_task *task;
	uint64_t address, bytes;
	uint64_t offset;   /* in the task's pages file */
	bool through_file; /* read with /proc/PID/mem */
};

struct page_writer {
	struct piece *pieces;
	size_t count, capacity;
	int *files; /* by index of the task */
	atomic_size_t next;
	atomic_uint_fast64_t done_bytes;
	uint64_t total_bytes;
	atomic_int error;
	atomic_int error_writing; /* 1: the file, 0: the task's memory */
};

struct job {
	struct page_writer *writer;
	const struct dump_options *reports_to; /* the one job that tells the user; NULL in the others */
	char *buffer;
};

static bool is_zero_page(const char *page)
{
	const uint64_t *words = (const uint64_t *)page;

	return !words[0] && !memcmp(page, page + sizeof(uint64_t), PAGE_BYTES - sizeof(uint64_t));
}

/* Writes the buffer but for its zero pages. The file has its full size already. */
static int write_pages(int fd, const char *buffer, size_t bytes, off_t offset)
{
	for (size_t at = 0; at < bytes;) {
		size_t end = at;
		while (end < bytes && !is_zero_page(buffer + end))
			end += PAGE_BYTES;
		if (end > at) {
			int error = pwrite_full(fd, buffer + at, end - at, offset + at);
			if (error < 0)
				return error;
		}
		at = end + PAGE_BYTES;
	}
	return 0;
}

/*
 * The way around process_vm_readv, which refuses mappings that may not be read, and pins pages: pinning a page that
 * is shared since a fork makes the kernel copy it for the task.
 */
static int read_through_file(const struct piece *piece, char *buffer)
{
	_cleanup_fd_ int fd = openat(piece->task->proc_dirfd, "mem", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : pread_full(fd, buffer, piece->bytes, piece->address);
}

/* A batch lies in one task and one stretch of its file. Returns the number of pieces it holds. */
static size_t read_batch(struct page_writer *writer, size_t first, size_t end, char *buffer, size_t *ret_bytes)
{
	const struct piece *pieces = writer->pieces;
	struct iovec remote[BATCH_PIECES];
	size_t count = 0, bytes = 0;

	if (pieces[first].through_file) {
		int error = read_through_file(&pieces[first], buffer);
		if (error < 0)
			atomic_store(&writer->error, error);
		*ret_bytes = pieces[first].bytes;
		return 1;
	}
	while (first + count < end && count < BATCH_PIECES) {
		const struct piece *piece = &pieces[first + count];
		if (piece->task != pieces[first].task || piece->through_file || bytes + piece->bytes > PIECE_BYTES)
			break;
		remote[count++] = (struct iovec){(void *)piece->address, piece->bytes};
		bytes += piece->bytes;
	}
	struct iovec local = {buffer, bytes};
	ssize_t got = process_vm_readv(pieces[first].task->pid, &local, 1, remote, count, 0);
	if (got != (ssize_t)bytes)
		atomic_store(&writer->error, got < 0 ? -errno : -EFAULT);
	*ret_bytes = bytes;
	return count;
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

static void *write_batches(void *argument)
{
	struct job *job = argument;
	struct page_writer *writer = job->writer;
	enum { CLAIM = 32 };

	while (!atomic_load(&writer->error)) {
		size_t first = atomic_fetch_add(&writer->next, CLAIM);
		size_t end = first + CLAIM < writer->count ? first + CLAIM : writer->count;
		while (first < end && !atomic_load(&writer->error)) {
			size_t bytes, count = read_batch(writer, first, end, job->buffer, &bytes);
			if (atomic_load(&writer->error))
				return NULL;
			int error = write_pages(writer->files[writer->pieces[first].task->index], job->buffer, bytes,
						writer->pieces[first].offset);
			if (error < 0) {
				atomic_store(&writer->error_writing, 1);
				atomic_store(&writer->error, error);
			}
			first += count;
			atomic_fetch_add(&writer->done_bytes, bytes);
		}
		report_progress(job);
		if (end == writer->count)
			return NULL;
	}
	return NULL;
}

static void add_pieces(struct page_writer *writer, struct dump_task *task, const struct page_run *run, uint64_t *offset)
{
	uint64_t left = run->pages * PAGE_BYTES, address = run->address;

	while (left) {
		uint64_t bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
		ARRAY_GROW(writer->pieces, writer->count, writer->capacity);
		writer->pieces[writer->count++] =
			(struct piece){task, address, bytes, *offset, run->unreadable || run->shared};
		address += bytes;
		*offset += bytes;
		writer->total_bytes += bytes;
		left -= bytes;
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
		entry.flags = (run->source ? PAGEMAP_SHARED : PAGEMAP_PRESENT) | (run->huge ? PAGEMAP_HUGE : 0) |
			      (run->lazy && !run->source ? PAGEMAP_LAZY : 0);
		if (run->source) {
			entry.has_source_pid = entry.has_source_vaddr = true;
			entry.source_pid = run->source->pid;
			entry.source_vaddr = run->source_address;
		}
		image_write(image, &entry.base);
		dump->stats.pages_scanned += run->pages;
		dump->stats.pages_written += run->source ? 0 : run->pages;
	}
	return image_close(&image);
}

static int open_pages_file(struct dump *dump, struct dump_task *task, uint64_t size, int *ret_fd)
{
	char name[64];

	image_name(IMAGE_PAGES, task->memory->pages_id, name, sizeof(name));
	_cleanup_fd_ int fd = openat(dump->images_dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_errno(&dump->failure, errno, "image-create", name, NULL, "cannot create the image file");
	if (ftruncate(fd, size) < 0)
		return fail_errno(&dump->failure, errno, "image-write", name, NULL, "cannot give it its size");
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int prepare(struct dump *dump, struct page_writer *writer)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		uint64_t offset = 0;

		if (!task->memory)
			continue;
		task->memory->pages_id = ++dump->last_pages_id;
		for (size_t r = 0; r < task->memory->run_count; r++)
			if (!task->memory->runs[r].source)
				add_pieces(writer, task, &task->memory->runs[r], &offset);
		int error = open_pages_file(dump, task, offset, &writer->files[i]);
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
	char *buffers = aligned_alloc(PAGE_BYTES, count * PIECE_BYTES);

	if (!buffers)
		return fail(&dump->failure, ENOMEM, "out-of-memory", NULL, NULL, "no memory for the page buffers");
	for (size_t i = 0; i < count; i++)
		jobs[i] = (struct job){writer, i ? NULL : dump->options, buffers + i * PIECE_BYTES};
	while (started < count && !pthread_create(&threads[started], NULL, write_batches, &jobs[started]))
		started++;
	write_batches(&jobs[0]);
	for (size_t i = 1; i < started; i++)
		pthread_join(threads[i], NULL);
	free(buffers);
	int error = atomic_load(&writer->error);
	if (error && atomic_load(&writer->error_writing))
		return fail_errno(&dump->failure, error, "image-write", "pages image",
				  error == -ENOSPC ? "free space, or choose another --images-dir" : NULL,
				  "cannot write memory pages");
	if (error)
		return fail_errno(&dump->failure, error, "task-memory", NULL, NULL, "cannot read the memory of a task");
	return 0;
}

int memory_write(struct dump *dump)
{
	struct page_writer writer = {};

	writer.files = xcalloc(dump->task_count, sizeof(*writer.files));
	for (size_t i = 0; i < dump->task_count; i++)
		writer.files[i] = -1;
	int error = prepare(dump, &writer);
	if (!error && writer.count)
		error = run_threads(dump, &writer);
	for (size_t i = 0; i < dump->task_count; i++)
		if (writer.files[i] >= 0 && close(writer.files[i]) < 0 && !error)
			error = fail_errno(&dump->failure, errno, "image-write", "pages image", NULL,
					   "cannot close it");
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = write_pagemap(dump, dump->tasks[i]);
	free(writer.files);
	free(writer.pieces);
	return error;
}
