/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of a migration between its files: migrate.c begins and ends it, source_rounds.c copies while the tree
 * runs and stops it, source_commit.c gives it away.
 */
#pragma once

#include "migrate/channel_sink.h"
#include "migrate/demand_server.h"
#include "migrate/journal.h"
#include "migrate/migrate.h"
#include "migrate/page_channel.h"
#include "migrate/session.h"
#include "model/options.h"

struct memory_tracker;
struct preflight;
struct shmem_tracker;
struct throttle;
struct vm_flags_reader;

struct migration {
	const struct migrate_options *options;
	const struct wire_options *wire; /* the options' wire, with what cancels */
	struct failure failure;
	struct session session;
	struct preflight *preflight;
	struct page_channel *channel;
	struct channel_sink sink;
	struct memory_tracker *tracker;
	struct shmem_tracker *shared_memory;
	struct vm_flags_reader *vm_flags; /* NULL = this kernel has none */
	struct throttle *throttle;        /* NULL = none */
	unsigned throttle_percent;
	struct page_channel_statistics sent; /* at the end of the round before */
	int images_dirfd;                    /* of the dump that goes on, or was last */
	uint32_t round;
	bool last;      /* this round is */
	bool post_copy; /* what the last round would send stays here until it is asked for */
	struct stream *demand[MIGRATE_MAX_CONNECTIONS + 1]; /* connections for it */
	size_t demand_count;
	struct demand_memory memory;         /* of the tree, when it stands */
	struct demand_server *demand_server; /* NULL = none */
	struct demand_statistics followed;   /* of servers before */
	bool stopped;                        /* the tree is stopped by SIGSTOP, and not criu's */
	bool ended;                          /* it ran there, and has ended by itself there; */
	int ended_status;                    /* its root's wait status, -1 = not known */
	struct journal journal;
	bool journal_written;
	struct migrate_progress_report report;
	uint64_t begin_us, freeze_us;
	uint64_t round_us, frozen_us;             /* the round before: how long it took, and how long the tree stood */
	uint64_t shared_bytes, shared_sent_bytes; /* the round before: of shared memory looked at, and sent */
	double bytes_per_us;                      /* of memory, in the round before; 0 = not known */
	double fastest_bytes_per_us;              /* of all rounds */
	size_t process_count;                     /* of the round before */
	struct migrate_summary summary;
};

/* The migration is in this state (migrate_states): tells the user, and tests. */
void migration_reach(struct migration *migration, const char *state);
void migration_write_journal(struct migration *migration, enum journal_state state);
/* What a dump of the tree may do, for the rounds and for a look in advance. */
struct dump_options migration_dump_options(struct migration *migration);

/*
 * Rounds until the rest is small enough, then the last one. On return the tree is stopped here (by SIGSTOP) and
 * complete there. Returns 0, or a failure: the tree runs on.
 */
int migration_copy(struct migration *migration);
/* The two phases. Entry: as migration_copy() leaves it. Returns as migrate_run(). */
int migration_give_away(struct migration *migration);
/* An earlier criu has ended while it gave the tree away: goes on where the journal says. Returns as migrate_run(). */
int migration_go_on(struct migration *migration, const struct journal *journal);

/* ---- post-copy (source_follow.c) ---- */

/* Opens the connections for demand and tells the other side. Before the tree is stopped. Returns 0 or a failure. */
int migration_open_demand(struct migration *migration);
/* From now on the other side is given what it asks for of migration->memory. Returns 0 or a failure. */
int migration_serve_demand(struct migration *migration);
/* No more. The connections are closed. */
void migration_end_demand(struct migration *migration);
/* The tree runs there: gives until nothing is missing. Returns 0 or the failure "migrate-following". */
int migration_follow(struct migration *migration);
/*
 * From now on the other side may be silent, or only say that it is busy, for so long and no longer: the tree must not
 * stand for ever because somebody is there and says nothing. It says that it is busy every few seconds.
 */
void migration_limit_silence(struct migration *migration);
/*
 * What the destination says of itself after a broken link; the connections for pages are gone.
 * @state  in which this side is. Returns 0 or a failure in @failure.
 */
int migration_ask_again(struct migration *migration, enum migrate_state state, const struct wire_options *wire,
			struct failure *failure, enum migrate_state *ret_state, bool *ret_missing);
/* Waits before the next try to come back. Returns false if the user has had enough. */
bool migration_pause(const struct wire_options *wire);
/* What a message says of a tree that may have ended there. */
void migration_note_end(struct migration *migration, bool ended, int status);
/* Ends the page channel; what it has sent stays in migration->sent. */
void migration_close_channel(struct migration *migration);
