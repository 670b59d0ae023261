/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination of a migration: one session, from the first connection to a tree that runs or to nothing.
 * protocol.h has the states; who may run the tree in each of them decides what happens when something breaks.
 */
#pragma once

#include <stdint.h>

#include "base/fail.h"
#include "migrate/session.h"

/* What the user is told of while it goes on. */
struct receive_report {
	void (*began)(void *context, int pid, const char *comm, const char *host);
	void (*bytes)(void *context, uint64_t bytes);
	void (*running)(void *context, int pid, uint64_t restore_ns);
	/* A line about a state that needs patience or a decision. */
	void (*note)(void *context, const char *text);
	void *context;
};

struct receive_options {
	const struct wire_options *wire;
	const struct receive_report *report;
	unsigned silence_seconds; /* of a source whose tree is not complete here yet; then it is given up */
	const char *die_at;       /* tests: the state at which the process kills itself; NULL = never */
};

/* The states that die_at can name, NULL at the end. */
extern const char *const receive_states[];

/*
 * Serves one session. Takes over @entry. Returns 0 when the tree runs here (or a dry run has ended well), or a failure:
 * then nothing of the tree is here.
 */
int receive_session(const struct receive_options *options, struct session_entry *entry, struct failure *failure);
