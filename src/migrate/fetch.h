/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy, at the destination: a thread of `criu receive` brings what the source still has. What must outlive a
 * killed criu is in a directory of the session below /run/criu: the pagemaps, and the socket of the guard that holds
 * the userfaultfds (lazy_guard.h).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/fail.h"

struct fetch;
struct stream;

/* The directory of a session (its join_id). @make: it must not exist yet. Returns 0 or a failure. */
int fetch_directory_open(const char *session, bool make, struct failure *failure, int *ret_fd);
/* Keeps the pagemaps of the images directory in it. Returns 0 or a failure. */
int fetch_keep_pagemaps(int directory_fd, int images_dirfd, struct failure *failure);
/*
 * The tree is to end: the guard lets go of what it holds. Otherwise whoever looks into the tree's memory from outside,
 * as the restore does, could wait for a missing page for ever. No fetch is running.
 */
void fetch_abandon(int directory_fd);
/* Everything is in place, or will never be: nothing of the directory stays. Other names are left alone. */
void fetch_directory_remove(const char *session);

/*
 * Starts the thread. It serves one restore whose work directory is @directory_fd, or (@goes_on) what the guard holds.
 * @streams  to the source's demand_server; borrowed until fetch_end()
 * Returns when a restore may begin: 0 or a failure.
 */
int fetch_start(int directory_fd, struct stream *const *streams, size_t stream_count, bool goes_on,
		struct failure *failure, struct fetch **ret_fetch);
/* Readable = it has ended by itself: nothing is missing any more, or something has failed. For poll(2). */
int fetch_fd(const struct fetch *fetch);
/* Readable = it has failed. For poll(2). */
int fetch_failed_fd(const struct fetch *fetch);
/*
 * Ends the thread, also in the midst of its work, and frees it. Tasks go on waiting: the guard holds their memory.
 * Returns 0 if nothing is missing any more, or the failure that it had ("cancelled": it was still at work).
 */
int fetch_end(struct fetch *fetch, struct failure *failure);
