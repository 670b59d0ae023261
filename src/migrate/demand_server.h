/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy, at the source: gives pages of a tree that stands, as the other side asks for them (FRAME_REQUEST, answered
 * by PAGES or ZERO with the same address; fewer pages than asked for are right as long as it is one).
 *
 * It remembers nothing of what was sent: pages may be asked for again, by a new connection too, until the tree ends.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"
#include "migrate/frames.h"

struct demand_server;
struct stream;

/* The memory of the tree's processes. */
struct demand_memory {
	struct demand_task {
		uint32_t space_id; /* the pid */
		int fd;            /* /proc/PID/mem */
	} * tasks;                 /* ascending */
	size_t count, capacity;
};

/* @proc_dirfd: /proc/PID, borrowed. Returns 0 or -errno. */
int demand_memory_add(struct demand_memory *memory, pid_t pid, int proc_dirfd);
/* All processes below @root and itself. Returns 0 or a failure. */
int demand_memory_add_tree(struct demand_memory *memory, pid_t root, struct failure *failure);
void demand_memory_free(struct demand_memory *memory);

struct demand_server_options {
	struct stream *const *streams; /* borrowed; the first is for what tasks wait for */
	size_t stream_count;
	const struct demand_memory *memory; /* borrowed */
	enum frame_codec codec;             /* for all but the first stream */
	uint64_t bytes_per_second;          /* the same; 0 = no limit */
};

/* What was given in all. */
struct demand_statistics {
	uint64_t pages, zero_pages, wire_bytes, faults; /* faults: requests on the first stream */
};

/* Starts a thread for each stream. Returns 0 or a failure. */
int demand_server_new(const struct demand_server_options *options, struct failure *failure,
		      struct demand_server **ret_server);
void demand_server_statistics(struct demand_server *server, struct demand_statistics *ret_statistics);
/* Ends the streams' connections and the threads. The streams are usable only for closing. NULL is fine. */
void demand_server_free(struct demand_server *server);
