/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of a migration: rounds of memory while the tree runs, a short stop, and the handing over in two phases.
 * protocol.h has the states; at each of them it is defined who may run the tree.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"
#include "migrate/endpoint.h"
#include "migrate/session.h"
#include "model/options.h"

struct moving_address;
struct preflight_check;

enum migrate_at_timeout {
	MIGRATE_CANCEL,        /* give up; the tree runs on here */
	MIGRATE_STOP_AND_COPY, /* stop the tree however long the rest takes */
	MIGRATE_POST_COPY,     /* let it run there while the rest comes */
};

/* How far it is, for a bar or an event; all counts since the beginning. */
struct migrate_progress_report {
	const char *state;               /* a constant: "connecting", "round", "last-round", "restoring", … */
	uint32_t round;                  /* 1, 2, …; 0 = none yet */
	uint64_t done_bytes;             /* of memory, in this round */
	uint64_t total_bytes;            /* of memory, in this round; 0 = not known */
	uint64_t dirty_bytes;            /* changed since they were sent */
	uint64_t dirty_bytes_per_second; /* 0 = not measured yet */
	uint64_t bytes_per_second;       /* of memory, last round */
	uint64_t downtime_estimate_us;   /* if the tree were stopped now; 0 = not known yet */
};

struct migrate_summary {
	uint64_t total_us, downtime_us; /* the second 0 = not known, an earlier criu has stopped it */
	uint32_t rounds;
	uint64_t memory_bytes;          /* pages with data, all rounds */
	uint64_t last_bytes;            /* of them in the last round, while the tree stood */
	uint64_t zero_bytes;            /* pages of zeros */
	uint64_t wire_bytes;            /* on the connections for pages */
	uint64_t image_bytes;           /* small images */
	uint64_t lz4_bytes, zstd_bytes; /* of memory_bytes, what was compressed */
	uint64_t follow_us;             /* post-copy: how long memory came while the tree ran there */
	uint64_t follow_bytes;          /* post-copy: how much */
	uint64_t faults;                /* post-copy: requests that a task waited for */
};

struct migrate_options {
	pid_t pid;
	struct endpoint endpoint;
	struct wire_options wire;
	unsigned downtime_ms;     /* the stop that is wanted */
	unsigned timeout_seconds; /* for the rounds; 0 = none */
	enum migrate_at_timeout at_timeout;
	unsigned link_timeout_seconds; /* for a silent or lost link, once the tree stands */
	bool throttle;                 /* slow a writer down that is faster than the link */
	bool post_copy;                /* no rounds: the tree runs there at once, and its memory follows */
	const struct moving_address *addresses;
	size_t address_count;
	const char *const *skip_checks; /* names of preflight checks to pass over */
	size_t skip_check_count;
	bool send_files;
	bool shell_job;
	uint64_t ghost_limit_bytes;
	unsigned freeze_timeout_seconds;
	const char *die_at; /* tests: the state at which the process kills itself; NULL = never */
	void (*progress)(void *context, const struct migrate_progress_report *report); /* may be NULL */
	void (*check)(void *context, const struct preflight_check *check);             /* of the preflight */
	void *context;
};

/* The states that die_at can name, NULL at the end. */
extern const char *const migrate_states[];

/*
 * Moves the tree, or brings the rest of one whose memory was following it when the link broke (the journal tells).
 * Returns 0: it runs there and is gone here; or a failure, which says where the tree is: it runs here, unless the
 * failure's code is "migrate-undecided": then both sides hold it, stopped; or "migrate-following": it runs there, and
 * waits for memory that is here.
 */
int migrate_run(const struct migrate_options *options, struct failure *failure, struct migrate_summary *ret_summary);
