/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written down of each migration, so that after a crash or a cut link a person, or the next criu, can tell
 * which side may run the tree: one JSON file a migration and side below /run/criu, renamed into place at each step.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

enum { JOURNAL_SESSION_BYTES = 40, JOURNAL_PEER_BYTES = 256 };

enum journal_role { JOURNAL_SOURCE, JOURNAL_DESTINATION };

/* What is known of the tree on this side; the names in the file are those of journal_state_name(). */
enum journal_state {
	JOURNAL_COPYING,  /* runs here (source); is being built (destination) */
	JOURNAL_DECIDING, /* stopped on both sides: the source has given up, or is about to, and has no answer yet */
	JOURNAL_FETCHING, /* post-copy: runs at the destination, pages are still here (source), still come (destination)
			   */
	JOURNAL_STATE_COUNT,
};

struct journal {
	enum journal_role role;
	enum journal_state state;
	pid_t pid;           /* root of the tree */
	uint64_t start_time; /* of the root here, clock ticks since boot; 0 = it does not exist here yet */
	pid_t criu;          /* the process that works on it */
	char session[JOURNAL_SESSION_BYTES];
	char peer[JOURNAL_PEER_BYTES];
};

/* Writes the file of @journal, or replaces it. Returns 0 or a failure. */
int journal_write(struct failure *failure, const struct journal *journal);
/* Removes the file: the migration has ended one way or the other. */
void journal_remove(const struct journal *journal);
/*
 * Calls @found for each journal of this pid namespace. Files that nobody can need any more (the tree is gone, and criu)
 * are removed instead. Returns 0 or a failure.
 */
int journal_list(struct failure *failure, void (*found)(void *context, const struct journal *journal), void *context);
/* The journal of the tree with root @pid on side @role. Returns 0, -ENOENT without a failure, or a failure. */
int journal_find(struct failure *failure, enum journal_role role, pid_t pid, struct journal *ret_journal);
const char *journal_state_name(enum journal_state state);
