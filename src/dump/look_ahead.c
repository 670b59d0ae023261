/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Half of what a descriptor costs is the same for every kind: taking a copy, asking for its flags, inode, position and
 * name. None of it needs the state of the dump, so another thread does it for the next few hundred descriptors while
 * the kinds describe the last ones. The window is small because the number of our descriptors is limited.
 *
 * The descriptors are cut into chunks. Whoever has nothing else to do looks at the next chunk: a caller that comes too
 * early takes part instead of waiting.
 */
#include "dump/look_ahead.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/fd.h"

enum {
	CHUNK = 32,
	WINDOW = 6, /* chunks */
	DESCRIPTORS_WORTH_A_THREAD = 512,
};

struct look_ahead {
	const struct dump_task *task;
	struct dump_fd *const *slots;
	size_t slot_count;
	dev_t pipe_device;
	int links_dirfd;             /* /proc/self/fd */
	size_t chunk_count, current; /* index of the descriptor that next() gives */
	struct look *looks;          /* all of a small table, or a window of it */
	size_t look_count;
	bool has_thread;
	pthread_t thread;
	pthread_mutex_t mutex; /* of what follows */
	pthread_cond_t changed;
	size_t claimed, consumed; /* chunks that somebody looks or has looked at; that the caller is done with */
	bool ready[WINDOW];
	bool stop;
};

static void failed(struct look *look, const char *code, const char *cause)
{
	look->error = errno;
	look->code = code;
	look->cause = cause;
}

/* What the kernel would say of a socket or pipe follows from its inode; asking costs more than all the rest. */
static bool known_link(dev_t pipe_device, struct look *look)
{
	bool is_socket = S_ISSOCK(look->stat.st_mode);

	if (!is_socket && !(S_ISFIFO(look->stat.st_mode) && look->stat.st_dev == pipe_device))
		return false;
	snprintf(look->link, sizeof(look->link), "%s:[%lu]", is_socket ? "socket" : "pipe", look->stat.st_ino);
	return true;
}

static bool has_position(mode_t mode)
{
	return S_ISREG(mode) || S_ISDIR(mode) || S_ISBLK(mode) || S_ISCHR(mode);
}

static void look_with(dev_t pipe_device, int links_dirfd, struct look *look)
{
	char path[48];

	look->error = 0;
	look->flags = fcntl(look->fd, F_GETFL);
	if (look->flags < 0 || fstat(look->fd, &look->stat) < 0) {
		failed(look, "fd-stat", "cannot look at the descriptor");
		return;
	}
	off_t position = has_position(look->stat.st_mode) ? lseek(look->fd, 0, SEEK_CUR) : 0;
	look->position = position < 0 ? 0 : position;
	if (known_link(pipe_device, look))
		return;
	snprintf(path, sizeof(path), "%s%d", links_dirfd < 0 ? "/proc/self/fd/" : "", look->fd);
	ssize_t length = readlinkat(links_dirfd, path, look->link, sizeof(look->link) - 1);
	if (length < 0)
		failed(look, "fd-link", "cannot read the descriptor's link");
	else
		look->link[length] = '\0';
}

void look_at(dev_t pipe_device, int fd, struct look *look)
{
	look->fd = fd;
	look->known = NULL;
	look_with(pipe_device, -1, look);
}

static void look_at_chunk(struct look_ahead *ahead, size_t chunk)
{
	size_t end = (chunk + 1) * CHUNK < ahead->slot_count ? (chunk + 1) * CHUNK : ahead->slot_count;

	for (size_t i = chunk * CHUNK; i < end; i++) {
		struct look *look = &ahead->looks[i % ahead->look_count];
		look->fd = syscall(SYS_pidfd_getfd, ahead->task->pidfd, ahead->slots[i]->number, 0);
		if (look->fd < 0)
			failed(look, "fd-get", "cannot take a copy of the descriptor");
		else
			look_with(ahead->pipe_device, ahead->links_dirfd, look);
	}
}

/* With the mutex held, which is released meanwhile. Returns false if there is nothing to look at now. */
static bool work(struct look_ahead *ahead)
{
	if (ahead->claimed == ahead->chunk_count || ahead->claimed == ahead->consumed + WINDOW)
		return false;
	size_t chunk = ahead->claimed++;
	pthread_mutex_unlock(&ahead->mutex);
	look_at_chunk(ahead, chunk);
	pthread_mutex_lock(&ahead->mutex);
	ahead->ready[chunk % WINDOW] = true;
	pthread_cond_broadcast(&ahead->changed);
	return true;
}

static void *run_ahead(void *argument)
{
	struct look_ahead *ahead = argument;

	pthread_mutex_lock(&ahead->mutex);
	while (!ahead->stop && ahead->claimed < ahead->chunk_count)
		if (!work(ahead))
			pthread_cond_wait(&ahead->changed, &ahead->mutex);
	pthread_mutex_unlock(&ahead->mutex);
	return NULL;
}

struct look_ahead *look_ahead_start(const struct dump_task *task, struct dump_fd *const *slots, size_t count,
				    dev_t pipe_device)
{
	struct look_ahead *ahead = xcalloc(1, sizeof(*ahead));

	ahead->task = task;
	ahead->slots = slots;
	ahead->slot_count = count;
	ahead->pipe_device = pipe_device;
	ahead->links_dirfd = -1;
	if (count >= DESCRIPTORS_WORTH_A_THREAD)
		ahead->links_dirfd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ahead->look_count = count < WINDOW * CHUNK ? count : WINDOW * CHUNK;
	ahead->looks = xrealloc_array(NULL, ahead->look_count, sizeof(*ahead->looks));
	ahead->chunk_count = (count + CHUNK - 1) / CHUNK;
	for (size_t i = 0; i < ahead->look_count; i++)
		ahead->looks[i].fd = -1;
	pthread_mutex_init(&ahead->mutex, NULL);
	pthread_cond_init(&ahead->changed, NULL);
	ahead->has_thread =
		count >= DESCRIPTORS_WORTH_A_THREAD && !pthread_create(&ahead->thread, NULL, run_ahead, ahead);
	return ahead;
}

struct look *look_ahead_next(struct look_ahead *ahead)
{
	size_t index = ahead->current++, chunk = index / CHUNK;

	if (index % CHUNK == 0) {
		pthread_mutex_lock(&ahead->mutex);
		if (chunk) {
			ahead->ready[ahead->consumed++ % WINDOW] = false;
			pthread_cond_broadcast(&ahead->changed);
		}
		while (!ahead->ready[chunk % WINDOW])
			if (!work(ahead))
				pthread_cond_wait(&ahead->changed, &ahead->mutex);
		pthread_mutex_unlock(&ahead->mutex);
	}
	return &ahead->looks[index % ahead->look_count];
}

void look_ahead_end(struct look_ahead *ahead)
{
	if (ahead->has_thread) {
		pthread_mutex_lock(&ahead->mutex);
		ahead->stop = true;
		pthread_cond_broadcast(&ahead->changed);
		pthread_mutex_unlock(&ahead->mutex);
		pthread_join(ahead->thread, NULL);
	}
	for (size_t i = 0; i < ahead->look_count; i++)
		close_fd_pointer(&ahead->looks[i].fd);
	close_fd_pointer(&ahead->links_dirfd);
	pthread_cond_destroy(&ahead->changed);
	pthread_mutex_destroy(&ahead->mutex);
	free(ahead->looks);
	free(ahead);
}
