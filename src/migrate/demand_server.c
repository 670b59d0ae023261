/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread for each connection: a task that waits is never behind what streams in. A connection that fails is shut
 * down, and that is all: the other side sees it end, and comes back.
 */
#include "migrate/demand_server.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"
#include "migrate/bandwidth.h"
#include "migrate/compression.h"
#include "migrate/protocol.h"
#include "migrate/stream.h"

/* ---- memory ---- */

int demand_memory_add(struct demand_memory *memory, pid_t pid, int proc_dirfd)
{
	int fd = openat(proc_dirfd, "mem", O_RDONLY | O_CLOEXEC);
	size_t at = memory->count;

	if (fd < 0)
		return -errno;
	ARRAY_GROW(memory->tasks, memory->count, memory->capacity);
	for (; at > 0 && memory->tasks[at - 1].space_id > (uint32_t)pid; at--)
		memory->tasks[at] = memory->tasks[at - 1];
	memory->tasks[at] = (struct demand_task){(uint32_t)pid, fd};
	memory->count++;
	return 0;
}

static int add_children(pid_t pid, pid_t **pids, size_t *count, size_t *capacity, int proc_dirfd)
{
	_cleanup_free_ int *threads = NULL;
	size_t thread_count = 0;
	int error = proc_list_numbers(proc_dirfd, "task", &threads, &thread_count);

	for (size_t i = 0; i < thread_count && !error; i++)
		error = proc_read_children(proc_dirfd, threads[i], pids, count, capacity);
	return error;
}

int demand_memory_add_tree(struct demand_memory *memory, pid_t root, struct failure *failure)
{
	_cleanup_free_ pid_t *pids = NULL;
	size_t count = 0, capacity = 0;
	int error = 0;

	ARRAY_GROW(pids, count, capacity);
	pids[count++] = root;
	for (size_t i = 0; i < count && !error; i++) {
		_cleanup_fd_ int proc_dirfd = proc_open(pids[i]);
		error = proc_dirfd < 0 ? -errno : add_children(pids[i], &pids, &count, &capacity, proc_dirfd);
		if (!error)
			error = demand_memory_add(memory, pids[i], proc_dirfd);
	}
	return error ? fail_errno(failure, error, "task-memory", NULL, "has somebody ended the tree?",
				  "cannot open the memory of its processes")
		     : 0;
}

void demand_memory_free(struct demand_memory *memory)
{
	for (size_t i = 0; i < memory->count; i++)
		close(memory->tasks[i].fd);
	free(memory->tasks);
	*memory = (struct demand_memory){};
}

static int compare_tasks(const void *key, const void *item)
{
	uint32_t space_id = *(const uint32_t *)key, other = ((const struct demand_task *)item)->space_id;

	return space_id < other ? -1 : space_id > other;
}

/* ---- answers ---- */

struct demand_connection {
	struct demand_server *server;
	struct stream *stream;
	bool urgent;
	pthread_t thread;
	uint8_t *pages, *packed; /* FRAME_MAX_BYTES each */
	struct compressor *compressor;
};

struct demand_server {
	struct demand_server_options options;
	pthread_mutex_t lock;
	struct bandwidth bandwidth;
	struct demand_statistics statistics;
	size_t count;
	struct demand_connection connections[MIGRATE_MAX_CONNECTIONS + 1];
};

/* Counts what is about to be sent, and waits until --bandwidth allows it. */
static void account(struct demand_connection *connection, const struct frame *frame)
{
	struct demand_server *server = connection->server;
	uint64_t wire_bytes = FRAME_HEADER_BYTES + frame->payload_bytes, wait_ns = 0;

	pthread_mutex_lock(&server->lock);
	*(frame->type == FRAME_ZERO ? &server->statistics.zero_pages : &server->statistics.pages) += frame->pages;
	server->statistics.wire_bytes += wire_bytes;
	server->statistics.faults += connection->urgent;
	if (!connection->urgent)
		wait_ns = bandwidth_take(&server->bandwidth, wire_bytes, clock_now_ns());
	pthread_mutex_unlock(&server->lock);
	if (wait_ns) {
		const struct timespec wait = {(time_t)(wait_ns / 1000000000), (long)(wait_ns % 1000000000)};
		nanosleep(&wait, NULL);
	}
}

static bool is_zero(const uint8_t *data, size_t bytes)
{
	return !data[0] && !memcmp(data, data + 1, bytes - 1);
}

/* What of the pages lies in mappings; what comes behind does not concern who asked. */
static int read_pages(const struct demand_connection *connection, const struct frame *request, size_t *ret_bytes,
		      struct failure *failure)
{
	const struct demand_memory *memory = connection->server->options.memory;
	const struct demand_task *task =
		bsearch(&request->space_id, memory->tasks, memory->count, sizeof(*memory->tasks), compare_tasks);
	size_t wanted = (size_t)request->pages * FRAME_PAGE_BYTES;

	if (!task || request->space_kind != SPACE_PROCESS)
		return fail(failure, EPROTO, "frame-header", stream_peer(connection->stream), NULL,
			    "it asks for memory that the tree does not have (%u)", request->space_id);
	ssize_t got = pread(task->fd, connection->pages, wanted, (off_t)request->address);
	if (got < FRAME_PAGE_BYTES)
		return fail_errno(failure, got < 0 ? errno : EFAULT, "task-memory", NULL,
				  "has somebody ended the tree?", "cannot read the memory of process %u at %llx",
				  request->space_id, (unsigned long long)request->address);
	*ret_bytes = (size_t)got & ~(size_t)(FRAME_PAGE_BYTES - 1);
	return 0;
}

static int answer(struct demand_connection *connection, const struct frame *request, uint64_t sequence,
		  struct failure *failure)
{
	struct frame frame = *request;
	const uint8_t *payload = connection->pages;
	enum frame_codec codec = connection->urgent ? FRAME_RAW : connection->server->options.codec;
	size_t bytes, packed = 0;

	if (request->type != FRAME_REQUEST)
		return fail(failure, EPROTO, "frame-header", stream_peer(connection->stream), NULL,
			    "something arrived that asks for nothing");
	int error = read_pages(connection, request, &bytes, failure);
	if (error < 0)
		return error;
	frame.sequence = sequence;
	frame.pages = (uint32_t)(bytes / FRAME_PAGE_BYTES);
	frame.codec = FRAME_RAW;
	frame.type = is_zero(payload, bytes) ? FRAME_ZERO : FRAME_PAGES;
	frame.payload_bytes = frame.type == FRAME_ZERO ? 0 : (uint32_t)bytes;
	if (frame.payload_bytes && codec != FRAME_RAW)
		packed = compressor_pack(connection->compressor, codec, payload, bytes, connection->packed);
	if (packed) {
		frame.codec = codec;
		frame.payload_bytes = (uint32_t)packed;
		payload = connection->packed;
	}
	account(connection, &frame);
	error = frame_send(connection->stream, &frame, payload);
	return error < 0 ? stream_fail(connection->stream, error, failure) : 0;
}

static void *serve(void *argument)
{
	struct demand_connection *connection = argument;
	struct failure failure = {};
	struct frame request;
	char line[1024];
	int error = 0;

	for (uint64_t sequence = 0; !error; sequence++) {
		error = frame_receive(connection->stream, sequence, &failure, &request);
		if (!error)
			error = answer(connection, &request, sequence, &failure);
	}
	if (failure_is_set(&failure))
		log_info("%s", failure_line(&failure, line, sizeof(line)));
	stream_shutdown(connection->stream);
	return NULL;
}

/* ---- life ---- */

static int start(struct demand_server *server, size_t index, struct failure *failure)
{
	struct demand_connection *connection = &server->connections[index];

	connection->server = server;
	connection->stream = server->options.streams[index];
	connection->urgent = index == 0;
	connection->pages = xcalloc(1, FRAME_MAX_BYTES);
	connection->packed = xcalloc(1, FRAME_MAX_BYTES);
	connection->compressor = compressor_new();
	/* Who ends it shuts the stream down. */
	stream_set_cancel(connection->stream, -1);
	int error = pthread_create(&connection->thread, NULL, serve, connection);
	server->count += !error;
	if (!error)
		return 0;
	free(connection->pages);
	free(connection->packed);
	compressor_free(&connection->compressor);
	return fail_errno(failure, error, "thread", NULL, NULL, "cannot start a thread");
}

int demand_server_new(const struct demand_server_options *options, struct failure *failure,
		      struct demand_server **ret_server)
{
	struct demand_server *server = xcalloc(1, sizeof(*server));
	sigset_t all, previous;
	int error = 0;

	server->options = *options;
	pthread_mutex_init(&server->lock, NULL);
	bandwidth_init(&server->bandwidth, options->bytes_per_second, clock_now_ns());
	/* Signals are the main thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &previous);
	for (size_t i = 0; i < options->stream_count && i < ARRAY_SIZE(server->connections) && !error; i++)
		error = start(server, i, failure);
	pthread_sigmask(SIG_SETMASK, &previous, NULL);
	if (error < 0) {
		demand_server_free(server);
		return error;
	}
	*ret_server = server;
	return 0;
}

void demand_server_statistics(struct demand_server *server, struct demand_statistics *ret_statistics)
{
	pthread_mutex_lock(&server->lock);
	*ret_statistics = server->statistics;
	pthread_mutex_unlock(&server->lock);
}

void demand_server_free(struct demand_server *server)
{
	if (!server)
		return;
	for (size_t i = 0; i < server->count; i++)
		stream_shutdown(server->connections[i].stream);
	for (size_t i = 0; i < server->count; i++) {
		struct demand_connection *connection = &server->connections[i];
		pthread_join(connection->thread, NULL);
		free(connection->pages);
		free(connection->packed);
		compressor_free(&connection->compressor);
	}
	pthread_mutex_destroy(&server->lock);
	free(server);
}
