/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages go into the pipes as they are read from the tree, one file after another. All other images are written into a
 * directory in memory first and sent at the end: some of them are written in pieces by several kinds, or removed again,
 * and a dump that begins anew (a connection was in flight) writes them again, while a file that was given to a streamer
 * stays given. Pages of shared memory may have been sent when that happens; they get new numbers, and those of the
 * attempt before belong to no pagemap.
 *
 * What stands in a pipe is lost with the streamer. The tree ends after a dump, so a file counts as written when its
 * pipe is empty: then the streamer has it. The kernel has no event for that, it is looked for. Meanwhile further files
 * are sent; a pipe is closed when it is found empty, because some streamers finish one file before they look at the
 * next.
 */
#include "dump/capture.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/memory_directory.h"
#include "dump/stages.h"
#include "image/image.h"
#include "image/image_streamer.h"
#include "model/page_sink.h"

enum {
	WAITING_FILES = 64, /* pipes that were filled and are not empty yet */
	ROOM_MS = 200,      /* between two looks at our signals */
	EMPTY_MS = 1,       /* between two looks at pipes */
};

struct capture_file {
	int fd;
	char name[64];
};

struct capture {
	struct page_sink sink;
	struct image_streamer *streamer;
	int dirfd;
	struct failure *failure;   /* of the attempt that sends pages */
	struct capture_file pages; /* that are being written; fd -1 = none */
	struct capture_file waiting[WAITING_FILES];
	size_t waiting_count;
	struct sigaction previous_sigpipe;
};

/* ---- one file ---- */

static int create(struct capture *capture, const char *name, struct failure *failure, struct capture_file *ret_file)
{
	snprintf(ret_file->name, sizeof(ret_file->name), "%s", name);
	return image_streamer_create(capture->streamer, name, failure, &ret_file->fd);
}

static int fail_write(const struct capture_file *file, int error, struct failure *failure)
{
	return error == EPIPE ? image_streamer_gone(failure, file->name)
			      : fail_errno(failure, error, "image-write", file->name, NULL,
					   "cannot be written to the image streamer");
}

/* A streamer may take its time, and the user may lose patience with it. */
static int wait_for_room(const struct capture_file *file, struct failure *failure)
{
	struct pollfd poll_fd = {.fd = file->fd, .events = POLLOUT};

	poll(&poll_fd, 1, ROOM_MS);
	return dump_check_interrupted(failure);
}

static int put_data(const struct capture_file *file, const char *data, size_t bytes, struct failure *failure)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t count = write(file->fd, data + done, bytes - done);
		int error = count >= 0        ? 0
			    : errno == EAGAIN ? wait_for_room(file, failure)
			    : errno == EINTR  ? 0
					      : fail_write(file, errno, failure);
		if (error < 0)
			return error;
		done += count < 0 ? 0 : count;
	}
	return 0;
}

/* The pipe refers to the pages of the file, which nobody changes any more. */
static int put_file(const struct capture_file *file, int from, off_t bytes, struct failure *failure)
{
	for (off_t done = 0; done < bytes;) {
		ssize_t count = splice(from, &done, file->fd, NULL, bytes - done, SPLICE_F_NONBLOCK);
		int error = count > 0 ? 0
			    : !count  ? fail(failure, ENODATA, "image-read", file->name, NULL, "it became shorter")
			    : errno == EAGAIN ? wait_for_room(file, failure)
			    : errno == EINTR  ? 0
					      : fail_write(file, errno, failure);
		if (error < 0)
			return error;
	}
	return 0;
}

/* ---- files that the streamer has not taken yet ---- */

/* Returns 1 if the pipe is empty, 0 if not, or a failure if nobody reads it. */
static int is_empty(const struct capture_file *file, struct failure *failure)
{
	struct pollfd poll_fd = {.fd = file->fd};
	int bytes = 0;

	if (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & POLLERR)
		return image_streamer_gone(failure, file->name);
	if (ioctl(file->fd, FIONREAD, &bytes) < 0)
		return fail_errno(failure, errno, "image-streamer", file->name, NULL, "cannot ask its pipe");
	return !bytes;
}

/* Ends the files that have arrived. */
static int close_empty(struct capture *capture, struct failure *failure)
{
	size_t kept = 0;
	int error = 0;

	for (size_t i = 0; i < capture->waiting_count; i++) {
		int empty = error < 0 ? 0 : is_empty(&capture->waiting[i], failure);
		if (empty > 0)
			close(capture->waiting[i].fd);
		else
			capture->waiting[kept++] = capture->waiting[i];
		error = empty < 0 ? empty : error;
	}
	capture->waiting_count = kept;
	return error;
}

static int wait_until_fewer(struct capture *capture, size_t limit, struct failure *failure)
{
	for (;;) {
		int error = close_empty(capture, failure);
		if (error < 0 || capture->waiting_count < limit)
			return error;
		poll(NULL, 0, EMPTY_MS);
		error = dump_check_interrupted(failure);
		if (error < 0)
			return error;
	}
}

/* Takes the file's descriptor. */
static int wait_for_file(struct capture *capture, struct capture_file *file, struct failure *failure)
{
	int error = wait_until_fewer(capture, WAITING_FILES, failure);

	if (error < 0) {
		close_fd_pointer(&file->fd);
	} else {
		capture->waiting[capture->waiting_count++] = *file;
	}
	file->fd = -1;
	return error;
}

/* ---- pages ---- */

static int open_space(struct page_sink *sink, struct failure *failure, enum page_space space, uint64_t id,
		      uint32_t pages_id)
{
	struct capture *capture = (struct capture *)sink;
	char name[64];

	capture->failure = failure;
	sink->last_pages_id = pages_id;
	return create(capture, image_name(IMAGE_PAGES, pages_id, name, sizeof(name)), failure, &capture->pages);
}

static int send_pages(struct page_sink *sink, enum page_space space, uint64_t id, uint64_t address, const void *data,
		      size_t bytes)
{
	const struct capture *capture = (const struct capture *)sink;

	return put_data(&capture->pages, data, bytes, capture->failure);
}

static int close_space(struct page_sink *sink, enum page_space space, uint64_t id)
{
	struct capture *capture = (struct capture *)sink;

	if (!failure_is_set(capture->failure))
		return wait_for_file(capture, &capture->pages, capture->failure);
	close_fd_pointer(&capture->pages.fd);
	capture->pages.fd = -1;
	return 0;
}

static const struct page_sink_ops operations = {
	.ordered = true,
	.open = open_space,
	.pages = send_pages,
	.close = close_space,
};

/* ---- the small images ---- */

static int send_image(struct capture *capture, const char *name, struct failure *failure)
{
	_cleanup_fd_ int from = openat(capture->dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	struct capture_file file = {.fd = -1};
	struct stat stat;

	if (from < 0 || fstat(from, &stat) < 0)
		return fail_errno(failure, errno, "image-read", name, NULL, "cannot be read again");
	int error = create(capture, name, failure, &file);
	if (!error)
		error = put_file(&file, from, stat.st_size, failure);
	if (!error)
		return wait_for_file(capture, &file, failure);
	close_fd_pointer(&file.fd);
	return error;
}

static int is_sent_before_inventory(const struct dirent *entry)
{
	return entry->d_name[0] != '.' && strcmp(entry->d_name, "inventory.img");
}

static int send_images(struct capture *capture, struct failure *failure)
{
	struct dirent **entries;
	int error = 0, count = scandirat(capture->dirfd, ".", &entries, is_sent_before_inventory, alphasort);

	if (count < 0)
		return fail_errno(failure, errno, "image-read", NULL, NULL, "cannot list the images in memory");
	for (int i = 0; i < count; i++) {
		if (!error)
			error = send_image(capture, entries[i]->d_name, failure);
		free(entries[i]);
	}
	free(entries);
	/* Last: images with an inventory are a complete dump. */
	return error ? error : send_image(capture, "inventory.img", failure);
}

int capture_finish(struct capture *capture, struct failure *failure)
{
	int error = send_images(capture, failure);

	if (!error)
		error = wait_until_fewer(capture, 1, failure);
	if (!error && !image_streamer_is_there(capture->streamer))
		error = image_streamer_gone(failure, NULL);
	image_streamer_close(&capture->streamer);
	return error;
}

/* ---- the whole ---- */

int capture_open(int images_dirfd, struct failure *failure, struct capture **ret_capture)
{
	const struct sigaction ignore = {.sa_handler = SIG_IGN};
	struct capture *capture = xcalloc(1, sizeof(*capture));

	capture->sink = (struct page_sink){.ops = &operations, .name = "image streamer"};
	capture->dirfd = capture->pages.fd = -1;
	sigaction(SIGPIPE, &ignore, &capture->previous_sigpipe);
	int error = image_streamer_connect(images_dirfd, IMAGE_STREAMER_CAPTURE, failure, &capture->streamer);
	if (!error)
		error = memory_directory_open(NULL, failure, &capture->dirfd);
	if (error < 0) {
		capture_free(capture);
		return error;
	}
	*ret_capture = capture;
	return 0;
}

struct page_sink *capture_sink(struct capture *capture)
{
	return &capture->sink;
}

int capture_directory(const struct capture *capture)
{
	return capture->dirfd;
}

void capture_free(struct capture *capture)
{
	if (!capture)
		return;
	image_streamer_close(&capture->streamer);
	for (size_t i = 0; i < capture->waiting_count; i++)
		close(capture->waiting[i].fd);
	close_fd_pointer(&capture->pages.fd);
	close_fd_pointer(&capture->dirfd);
	sigaction(SIGPIPE, &capture->previous_sigpipe, NULL);
	free(capture);
}
