/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/fetch.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "migrate/demand_supply.h"
#include "migrate/lazy_daemon.h"
#include "migrate/lazy_guard.h"
#include "migrate/stream.h"

struct fetch {
	int directory_fd;
	struct stream *const *streams;
	size_t stream_count;
	bool goes_on;
	pthread_t thread;
	int ready_fd, ended_fd, failed_fd, stop_fd; /* eventfds */
	int error;
	struct failure failure;
};

/* ---- the directory ---- */

static const char parent_directory[] = "/run/criu";

static void directory_path(const char *session, char *path, size_t size)
{
	snprintf(path, size, "%s/post-copy-%.40s", parent_directory, session);
}

int fetch_directory_open(const char *session, bool make, struct failure *failure, int *ret_fd)
{
	char path[128];

	directory_path(session, path, sizeof(path));
	if (make && ((mkdir(parent_directory, 0700) < 0 && errno != EEXIST) || mkdir(path, 0700) < 0))
		return fail_errno(failure, errno, "post-copy-directory", path, NULL, "cannot make the directory");
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fail_errno(failure, errno, "post-copy-directory", path, NULL, "cannot open the directory");
	*ret_fd = fd;
	return 0;
}

static int copy_file(int from_dirfd, int to_dirfd, const char *name, struct failure *failure)
{
	_cleanup_fd_ int from = openat(from_dirfd, name, O_RDONLY | O_CLOEXEC);
	_cleanup_fd_ int to = openat(to_dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	char buffer[65536];
	ssize_t got = -1;
	int error = from < 0 || to < 0 ? -errno : 0;

	while (!error && (got = read(from, buffer, sizeof(buffer))) > 0)
		error = write_full(to, buffer, (size_t)got);
	if (!error && got < 0)
		error = -errno;
	return error ? fail_errno(failure, error, "image-write", name, "free memory on this machine",
				  "cannot keep the image")
		     : 0;
}

static DIR *open_listing(int dirfd)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? NULL : fdopendir(fd);
}

int fetch_keep_pagemaps(int directory_fd, int images_dirfd, struct failure *failure)
{
	_cleanup_dir_ DIR *listing = open_listing(images_dirfd);
	struct dirent *entry;
	int error = 0;

	if (!listing)
		return fail_errno(failure, errno, "image-open", NULL, NULL, "cannot list the images");
	while (!error && (entry = readdir(listing)))
		if (!strncmp(entry->d_name, "pagemap-", strlen("pagemap-")) &&
		    strncmp(entry->d_name, "pagemap-shmem-", strlen("pagemap-shmem-")))
			error = copy_file(images_dirfd, directory_fd, entry->d_name, failure);
	return error;
}

void fetch_directory_remove(const char *session)
{
	struct failure ignored = {};
	struct dirent *entry;
	char path[128];
	_cleanup_fd_ int fd = -1;

	if (fetch_directory_open(session, false, &ignored, &fd) < 0)
		return;
	_cleanup_dir_ DIR *listing = open_listing(fd);
	while (listing && (entry = readdir(listing)))
		unlinkat(fd, entry->d_name, 0);
	directory_path(session, path, sizeof(path));
	rmdir(path);
}

struct held_numbers {
	uint32_t *items;
	size_t count, capacity;
};

static void note_number(void *context, const struct lazy_held *held)
{
	struct held_numbers *numbers = context;

	ARRAY_GROW(numbers->items, numbers->count, numbers->capacity);
	numbers->items[numbers->count++] = held->number;
	close(held->userfault_fd);
	close(held->state_fd);
}

void fetch_abandon(int directory_fd)
{
	struct held_numbers numbers = {};
	struct failure ignored = {};
	int guard_fd;

	if (lazy_guard_attach(directory_fd, &ignored, note_number, &numbers, &guard_fd) < 0)
		return;
	for (size_t i = 0; i < numbers.count; i++)
		lazy_guard_drop(guard_fd, numbers.items[i]);
	free(numbers.items);
	close(guard_fd);
}

/* ---- the thread ---- */

static void tell(int event_fd)
{
	const uint64_t one = 1;

	write_full(event_fd, &one, sizeof(one));
}

static void ready(void *context)
{
	const struct fetch *fetch = context;

	tell(fetch->ready_fd);
}

static void *run(void *argument)
{
	struct fetch *fetch = argument;
	struct page_supply *supply = NULL;
	const struct lazy_daemon_options options = {
		.work_dirfd = fetch->directory_fd,
		.stop_fd = fetch->stop_fd,
		.goes_on = fetch->goes_on,
		.ready = ready,
		.context = fetch,
	};

	fetch->error =
		demand_supply_new(fetch->directory_fd, fetch->streams, fetch->stream_count, &fetch->failure, &supply);
	if (!fetch->error)
		fetch->error = lazy_daemon_run(&options, supply, &fetch->failure);
	demand_supply_free(supply);
	if (fetch->error)
		tell(fetch->failed_fd);
	tell(fetch->ended_fd);
	tell(fetch->ready_fd);
	return NULL;
}

/* The thread's answers must not wait for a link that is being given up. */
static int start_thread(struct fetch *fetch)
{
	sigset_t all, previous;

	for (size_t i = 0; i < fetch->stream_count; i++)
		stream_set_cancel(fetch->streams[i], fetch->stop_fd);
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &previous);
	int error = pthread_create(&fetch->thread, NULL, run, fetch);
	pthread_sigmask(SIG_SETMASK, &previous, NULL);
	return -error;
}

static void fetch_free(struct fetch *fetch)
{
	close_fd_pointer(&fetch->ready_fd);
	close_fd_pointer(&fetch->ended_fd);
	close_fd_pointer(&fetch->failed_fd);
	close_fd_pointer(&fetch->stop_fd);
	free(fetch);
}

int fetch_start(int directory_fd, struct stream *const *streams, size_t stream_count, bool goes_on,
		struct failure *failure, struct fetch **ret_fetch)
{
	struct fetch *fetch = xcalloc(1, sizeof(*fetch));
	uint64_t count;

	*fetch = (struct fetch){
		.directory_fd = directory_fd,
		.streams = streams,
		.stream_count = stream_count,
		.goes_on = goes_on,
		.ready_fd = eventfd(0, EFD_CLOEXEC),
		.ended_fd = eventfd(0, EFD_CLOEXEC),
		.failed_fd = eventfd(0, EFD_CLOEXEC),
		.stop_fd = eventfd(0, EFD_CLOEXEC),
	};
	bool opened = fetch->ready_fd >= 0 && fetch->ended_fd >= 0 && fetch->failed_fd >= 0 && fetch->stop_fd >= 0;
	int error = opened ? start_thread(fetch) : -errno;
	if (error < 0) {
		fetch_free(fetch);
		return fail_errno(failure, error, "thread", NULL, NULL, "cannot start a thread");
	}
	read_full(fetch->ready_fd, &count, sizeof(count));
	*ret_fetch = fetch;
	return 0;
}

int fetch_fd(const struct fetch *fetch)
{
	return fetch->ended_fd;
}

int fetch_failed_fd(const struct fetch *fetch)
{
	return fetch->failed_fd;
}

int fetch_end(struct fetch *fetch, struct failure *failure)
{
	tell(fetch->stop_fd);
	pthread_join(fetch->thread, NULL);
	int error = fetch->error;
	if (error < 0)
		*failure = fetch->failure;
	fetch_free(fetch);
	return error;
}
