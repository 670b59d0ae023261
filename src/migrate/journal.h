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
#include "migrate/protocol.h"

struct moving_address;

enum {
	JOURNAL_SESSION_BYTES = 40,
	JOURNAL_SECRET_BYTES = 65,
	JOURNAL_PEER_BYTES = 256,
	JOURNAL_ADDRESSES_BYTES = 2048,
};

enum journal_role { JOURNAL_SOURCE, JOURNAL_DESTINATION };

/* What is known of the tree on this side; the names in the file are those of journal_state_name(). */
enum journal_state {
	JOURNAL_COPYING,  /* runs here (source); is being built (destination) */
	JOURNAL_DECIDING, /* stopped on both sides: the source has given up, or is about to, and has no answer yet */
	JOURNAL_FETCHING, /* post-copy: runs, or is about to run, at the destination; memory is here (source), or comes
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
	/* Of the session, in hexadecimal: who goes on proves with it that he may. Empty while copying. */
	char secret[JOURNAL_SECRET_BYTES];
	char peer[JOURNAL_PEER_BYTES];
	/*
	 * Those that go along, as text with a space behind each. The source may have lost them already; the destination
	 * may have been given them for a tree that has not run here yet, and must lose them if it never will.
	 */
	char addresses[JOURNAL_ADDRESSES_BYTES];
	uint64_t network; /* inode of the network namespace that they are of; 0 = not known */
};

/* Writes the file of @journal, or replaces it. Returns 0 or a failure. */
int journal_write(struct failure *failure, const struct journal *journal);
/* Removes the file: the migration has ended one way or the other. */
void journal_remove(const struct journal *journal);
/*
 * Calls @found for each journal of this pid namespace. Files that nobody can need any more (the tree is gone, and criu)
 * are removed instead, and with them the addresses that a destination had taken. Returns 0 or a failure.
 */
int journal_list(struct failure *failure, void (*found)(void *context, const struct journal *journal), void *context);
/* Only removes what nobody can need any more. */
void journal_clean(void);
/* The journal of side @role of a session (its join_id). Returns 0, -ENOENT without a failure, or a failure. */
int journal_find_session(struct failure *failure, enum journal_role role, const char *session,
			 struct journal *ret_journal);
/* The journal of the tree with root @pid on side @role. Returns 0, -ENOENT without a failure, or a failure. */
int journal_find(struct failure *failure, enum journal_role role, pid_t pid, struct journal *ret_journal);
/* The secret to text and back; from text: returns 0, or -EINVAL if there is none. */
void journal_set_secret(struct journal *journal, const uint8_t secret[SESSION_SECRET_BYTES]);
int journal_secret(const struct journal *journal, uint8_t ret_secret[SESSION_SECRET_BYTES]);
/* Up to what there is room for. */
void journal_set_addresses(struct journal *journal, const struct moving_address *addresses, size_t count);
/* Does @change (of address.h) to each of them. Returns 0 or the first failure. */
int journal_change_addresses(const struct journal *journal,
			     int (*change)(struct failure *failure, const struct moving_address *address),
			     struct failure *failure);
/* The tree runs on at the source: gives this machine those of its addresses again that are gone. Returns 0 or a
 * failure. */
int journal_take_addresses_back(const struct journal *journal, struct failure *failure);
const char *journal_state_name(enum journal_state state);
