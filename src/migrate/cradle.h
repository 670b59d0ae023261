/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process at the destination that becomes the root of the tree.
 *
 * `criu receive` forks it with the root's pid when the first round begins. Its life has three parts:
 *   - it receives pages: the root's private anonymous memory straight into its own address space (restore/preload.h),
 *     everything else into stores, which are files in memory with each page at the offset of its address;
 *   - when the last images are there, it runs restore_run(), which forks a new criu off it, and becomes the root;
 *   - that new criu holds the complete tree one step before its first instruction, says so, and waits for a word.
 * `criu receive` talks to whichever of them is there through one socket, with the messages below, and ends both at once
 * with cradle_end().
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"
#include "migrate/page_receiver.h"
#include "model/options.h"
#include "restore/preload.h"

struct cradle;
struct stream;

struct cradle_options {
	pid_t root_pid;
	struct stream *const *streams; /* that carry pages; the cradle's own from now on */
	size_t stream_count;
	/* What restore_run() is asked; images_dirfd is filled while the cradle receives. preload, stores, before_resume
	 * and context are set by the cradle. */
	const struct restore_options *restore;
	const char *session; /* join_id: where memory comes from that is missing yet (fetch.h) */
};

/* Makes the process. Returns 0 or a failure; *ret_cradle is freed by cradle_end() or cradle_release(). */
int cradle_start(struct failure *failure, const struct cradle_options *options, struct cradle **ret_cradle);

/* A mapping of private anonymous memory in the root. */
struct cradle_mapping {
	struct preload_range range;
	bool keep_only; /* what is mapped of it stays, no more is mapped: its pages go into the store */
};

/*
 * Tells what is mapped in the root: @mappings ascend. What was told before and is not there is unmapped. Returns 0 when
 * the cradle has done it, or a failure.
 */
int cradle_map(struct cradle *cradle, struct failure *failure, const struct cradle_mapping *mappings, size_t count);
/* What has arrived so far. Returns 0 or a failure, which is that of the receiver if it has one. */
int cradle_count(struct cradle *cradle, struct failure *failure, struct page_receiver_statistics *ret_statistics);
/*
 * The images are complete: builds the tree. @lost_fd: of a tree whose memory is missing and asked for (fetch.h):
 * readable = it will not come; -1 = nothing is missing. @waits is called every few seconds meanwhile. Returns 0 when
 * every thread is ready to run, or a failure after which nothing of it is left; if @lost_fd is the cause, its code is
 * CRADLE_NO_MEMORY.
 */
#define CRADLE_NO_MEMORY "memory-lost"
int cradle_restore(struct cradle *cradle, int lost_fd, void (*waits)(void *context), void *context,
		   struct failure *failure);
/* Lets the tree run. Returns 0 or a failure: then it is not known to run, and cradle_end() makes sure that it does not.
 */
int cradle_resume(struct cradle *cradle, struct failure *failure);
/* Readable or hung up = the cradle has something to say that nobody asked for: it has failed. For poll(2). */
int cradle_fd(const struct cradle *cradle);

/* Whether every task of the tree is there, one step before its first instruction; NULL has none. */
bool cradle_has_tree(const struct cradle *cradle);
/* Ends every process of it; NULL is fine. */
void cradle_end(struct cradle *cradle);
/* Forgets a tree that runs. */
void cradle_release(struct cradle *cradle);
