/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process_vm_readv reads many ranges in one call, but it refuses mappings that may not be read, and it pins pages:
 * pinning a page that is shared since a fork makes the kernel copy it for the task. Those go through /proc/PID/mem,
 * which copies every page twice.
 *
 * The number of a running process may be another's as soon as it has ended. So what was read by number counts only if
 * the directory of the process in /proc still answers afterwards.
 */
#include "kinds/mem/page_read.h"

#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fd.h"

enum {
	PAGE_BYTES = 4096,
	BATCH_PIECES = 256,
};

struct page_piece page_piece_of_run(struct dump_task *task, const struct page_run *run, uint64_t done_bytes,
				    uint64_t most_bytes)
{
	uint64_t left = run->pages * PAGE_BYTES - done_bytes;

	return (struct page_piece){
		.task = task,
		.address = run->address + done_bytes,
		.bytes = left < most_bytes ? left : most_bytes,
		.through_file = run->unreadable || run->shared,
	};
}

static bool read_by_number(const struct page_piece *piece, char *buffer)
{
	struct iovec local = {buffer, piece->bytes}, remote = {(void *)piece->address, piece->bytes};

	return !piece->through_file &&
	       process_vm_readv(piece->task->pid, &local, 1, &remote, 1, 0) == (ssize_t)piece->bytes &&
	       !faccessat(piece->task->proc_dirfd, "comm", F_OK, 0);
}

/* What has gone meanwhile is read as zeros. */
static int read_running(const struct page_piece *piece, char *buffer)
{
	if (read_by_number(piece, buffer))
		return 0;
	_cleanup_fd_ int fd = openat(piece->task->proc_dirfd, "mem", O_RDONLY | O_CLOEXEC);
	size_t done = 0;

	while (fd >= 0 && done < piece->bytes) {
		ssize_t got = pread(fd, buffer + done, piece->bytes - done, piece->address + done);
		if (got > 0) {
			done += got;
			continue;
		}
		size_t rest = PAGE_BYTES - done % PAGE_BYTES;
		memset(buffer + done, 0, rest);
		done += rest;
	}
	memset(buffer + done, 0, piece->bytes - done);
	return 0;
}

static int read_through_file(const struct page_piece *piece, char *buffer)
{
	_cleanup_fd_ int fd = openat(piece->task->proc_dirfd, "mem", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : pread_full(fd, buffer, piece->bytes, piece->address);
}

int page_read(const struct page_piece *pieces, size_t count, char *buffer, size_t room_bytes, size_t *ret_bytes)
{
	struct iovec remote[BATCH_PIECES];
	size_t taken = 0, bytes = 0;

	bool running = pieces[0].task->memory->running;

	if (running || pieces[0].through_file) {
		int error = running ? read_running(&pieces[0], buffer) : read_through_file(&pieces[0], buffer);
		if (!error)
			*ret_bytes = pieces[0].bytes;
		return error ? error : 1;
	}
	while (taken < count && taken < BATCH_PIECES) {
		const struct page_piece *piece = &pieces[taken];
		if (piece->task != pieces[0].task || piece->through_file || bytes + piece->bytes > room_bytes)
			break;
		remote[taken++] = (struct iovec){(void *)piece->address, piece->bytes};
		bytes += piece->bytes;
	}
	struct iovec local = {buffer, bytes};
	ssize_t got = process_vm_readv(pieces[0].task->pid, &local, 1, remote, taken, 0);
	if (got != (ssize_t)bytes)
		return got < 0 ? -errno : -EFAULT;
	*ret_bytes = bytes;
	return taken;
}
