/* SPDX-License-Identifier: Apache-2.0 */
/* Giving the tree away: after COMMIT the destination decides, and this side must learn what (protocol.h). */
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "dump/stopped.h"
#include "migrate/address.h"
#include "migrate/door.h"
#include "migrate/migration.h"
#include "migrate/stream.h"

/* The tree is stopped here and complete there. Until COMMIT is sent this side decides. */
static int commit(struct migration *migration)
{
	MigrateCommit message = MIGRATE_COMMIT__INIT;

	stream_set_cancel(migration->session.control, -1);
	int error = 0;

	migration_write_journal(migration, migration->post_copy ? JOURNAL_FETCHING : JOURNAL_DECIDING);
	migration_reach(migration, "deciding");
	error = journal_change_addresses(&migration->journal, address_remove, &migration->failure);
	if (error < 0)
		return error;
	message.session_id.data = migration->session.id;
	message.session_id.len = SESSION_ID_BYTES;
	message.post_copy = migration->post_copy;
	error = protocol_send(&migration->session.protocol, MESSAGE_COMMIT, &message, &migration->failure);
	migration_reach(migration, "committed");
	return error;
}

static int wait_until_running(struct migration *migration)
{
	_cleanup_message_ struct message message = {};

	int error = protocol_expect(&migration->session.protocol, MESSAGE_RUNNING, &migration->failure, &message);
	if (error < 0)
		return error;
	const MigrateRunning *running = (MigrateRunning *)message.body;
	migration_note_end(migration, running->has_ended, running->ended);
	return 0;
}

/* The destination has said that it could not, and that nothing of the tree is left there. */
static bool was_refused(const struct migration *migration)
{
	return migration->session.protocol.state == MIGRATE_ABORTED;
}

/* After COMMIT the destination decides, and this side must learn what. */
static int ask_outcome(struct migration *migration, const struct wire_options *wire, struct failure *failure,
		       bool *ret_runs_there)
{
	enum migrate_state state;
	bool missing;
	int error = migration_ask_again(migration, MIGRATE_COMMITTED, wire, failure, &state, &missing);

	if (error < 0)
		return error;
	if (state == MIGRATE_READY) {
		failure_clear(&migration->failure);
		error = commit(migration);
		if (!error)
			error = wait_until_running(migration);
		if (error < 0 && !was_refused(migration)) {
			*failure = migration->failure;
			return error;
		}
		state = migration->session.protocol.state;
	}
	migration->post_copy = missing;
	*ret_runs_there = state == MIGRATE_RUNNING || state == MIGRATE_DONE;
	return 0;
}

/* Asks until the other side has answered: a link may be gone for a while. */
static int learn_outcome(struct migration *migration, const struct wire_options *wire, bool *ret_runs_there)
{
	uint64_t until = clock_now_us() + migration->options->link_timeout_seconds * 1000000ULL;
	struct failure failure;
	char line[1024];
	int error;

	for (bool told = false;; told = true) {
		failure = (struct failure){};
		error = ask_outcome(migration, wire, &failure, ret_runs_there);
		if (!error || !stream_is_lost(&failure) || clock_now_us() >= until)
			break;
		if (!told)
			log_warn("%s; trying again", failure_line(&failure, line, sizeof(line)));
		if (!migration_pause(wire))
			break;
	}
	if (error && !failure_is_set(&migration->failure))
		migration->failure = failure;
	return error;
}

static int tell_undecided(struct migration *migration)
{
	struct failure cause = migration->failure;
	char object[64];

	failure_clear(&migration->failure);
	snprintf(object, sizeof(object), "process %d", migration->options->pid);
	return fail(
		&migration->failure, EREMCHG, "migrate-undecided", object,
		"repeat the same command, or look at the other side (criu migrate --status) and decide: here --abort "
		"if it runs there, --resume if not",
		"the link broke while it was handed over, and the other side cannot be asked (%s): it is kept here, "
		"stopped",
		cause.cause);
}

static struct stopped_options stopped_tree(const struct migration *migration)
{
	return (struct stopped_options){
		.pid = migration->options->pid,
		.images_dirfd = migration->images_dirfd,
		.timeout_seconds = migration->options->freeze_timeout_seconds,
	};
}

static int take_back(struct migration *migration)
{
	const struct stopped_options options = stopped_tree(migration);
	struct failure cause = migration->failure, failure = {};

	failure_clear(&migration->failure);
	journal_take_addresses_back(&migration->journal, &migration->failure);
	migration->failure = cause;
	/* It runs on here, so nothing was moved, however well that was learnt. */
	fail(&migration->failure, ECANCELED, "migrate-given-up", NULL, "give the same command once more",
	     "the other side has given the migration up: the tree runs on here");
	if (stopped_tree_resume(&options, &failure) < 0) {
		migration->failure = failure;
		fail_in(&migration->failure, "the migration failed (%s), and the tree, stopped here, cannot go on",
			cause.cause);
	}
	migration->stopped = false;
	return -migration->failure.error;
}

/* It has lived there, for however short a time, so it must not begin again here. */
static int fail_ended(struct migration *migration)
{
	int status = migration->ended_status;
	char object[64], how[64] = "";

	if (status >= 0 && WIFSIGNALED(status))
		snprintf(how, sizeof(how), ", killed by signal %d", WTERMSIG(status));
	else if (status >= 0)
		snprintf(how, sizeof(how), " with status %d", WEXITSTATUS(status));
	snprintf(object, sizeof(object), "process %d", migration->options->pid);
	return fail(&migration->failure, ESRCH, "migrate-ended", object, "if it was not to end, start it anew",
		    "it was given to the other side, ran there, and has ended there%s before all of it was moved: "
		    "it is nowhere any more",
		    how);
}

static int release(struct migration *migration)
{
	const struct stopped_options options = stopped_tree(migration);
	PostCopyDone released = POST_COPY_DONE__INIT;
	struct failure ignored = {};

	released.pages = migration->followed.pages + migration->followed.zero_pages;
	int error = stopped_tree_kill(&options, &migration->failure);
	protocol_send(&migration->session.protocol, MESSAGE_RELEASED, &released, &ignored);
	return error ? error : migration->ended ? fail_ended(migration) : 0;
}

/* It runs there. What is still here follows; then this copy ends. */
static int finish_here(struct migration *migration)
{
	migration_reach(migration, "running");
	if (migration->freeze_us)
		migration->summary.downtime_us = clock_now_us() - migration->freeze_us;
	if (migration->post_copy) {
		uint64_t begin = clock_now_us();
		migration_write_journal(migration, JOURNAL_FETCHING);
		migration_reach(migration, "following");
		int error = migration_follow(migration);
		if (error < 0)
			return error;
		migration->summary.follow_us = clock_now_us() - begin;
	}
	return release(migration);
}

/* The two phases. Entry: stopped here, complete there. */
int migration_give_away(struct migration *migration)
{
	bool runs_there = false;
	int error = commit(migration);

	if (migration->session.protocol.state != MIGRATE_COMMITTED)
		return take_back(migration);
	if (!error)
		error = wait_until_running(migration);
	if (!error)
		return finish_here(migration);
	if (was_refused(migration))
		return take_back(migration);
	if (learn_outcome(migration, &migration->options->wire, &runs_there) < 0)
		return tell_undecided(migration);
	if (!runs_there)
		return take_back(migration);
	failure_clear(&migration->failure);
	return finish_here(migration);
}

/* What of an earlier criu's session is needed. */
static int take_session(struct migration *migration, const struct journal *journal)
{
	migration->journal = *journal;
	migration->journal_written = true;
	if (session_id_parse(journal->session, migration->session.id) < 0 ||
	    journal_secret(journal, migration->session.secret) < 0)
		return fail(&migration->failure, EINVAL, "journal", NULL, NULL,
			    "what an earlier criu wrote down is damaged");
	memcpy(migration->session.join_id, journal->session, sizeof(migration->session.join_id));
	return demand_memory_add_tree(&migration->memory, migration->options->pid, &migration->failure);
}

int migration_go_on(struct migration *migration, const struct journal *journal)
{
	bool runs_there = false;
	int error = take_session(migration, journal);

	if (!error)
		error = learn_outcome(migration, migration->wire, &runs_there);
	if (error < 0)
		return tell_undecided(migration);
	return runs_there ? finish_here(migration) : take_back(migration);
}
