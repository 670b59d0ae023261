/* SPDX-License-Identifier: Apache-2.0 */
/* Giving the tree away: after COMMIT the destination decides, and this side must learn what (protocol.h). */
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "dump/stopped.h"
#include "migrate/address.h"
#include "migrate/migration.h"
#include "migrate/stream.h"

/* A link that broke after the tree was given away is tried again for so long. */
enum { RECONNECT_SECONDS = 30, RECONNECT_PAUSE_MS = 500 };

static int change_addresses(struct migration *migration,
			    int (*change)(struct failure *failure, const struct moving_address *address))
{
	int error = 0;

	for (size_t i = 0; i < migration->options->address_count && !error; i++)
		error = change(&migration->failure, &migration->options->addresses[i]);
	return error;
}

/* The tree is stopped here and complete there. Until COMMIT is sent this side decides. */
static int commit(struct migration *migration)
{
	MigrateCommit message = MIGRATE_COMMIT__INIT;

	stream_set_cancel(migration->session.control, -1);
	int error = 0;

	migration_write_journal(migration, JOURNAL_DECIDING);
	migration_reach(migration, "deciding");
	if (migration->options->address_count) {
		migration->addresses_gone = true;
		error = change_addresses(migration, address_remove);
	}
	if (error < 0)
		return error;
	message.session_id.data = migration->session.id;
	message.session_id.len = SESSION_ID_BYTES;
	error = protocol_send(&migration->session.protocol, MESSAGE_COMMIT, &message, &migration->failure);
	migration_reach(migration, "committed");
	return error;
}

static int wait_until_running(struct migration *migration)
{
	_cleanup_message_ struct message message = {};

	return protocol_expect(&migration->session.protocol, MESSAGE_RUNNING, &migration->failure, &message);
}

/* What the destination says of itself after a broken link. */
static int ask_again(struct migration *migration, enum migrate_state *ret_state)
{
	struct session again = {};
	struct failure failure = {};
	ResumeSession question = RESUME_SESSION__INIT;
	struct message message = {};
	uint8_t proof[SESSION_PROOF_BYTES];
	int error = session_reconnect(&again, &migration->options->endpoint, &migration->options->wire,
				      migration->session.id, migration->session.secret, &failure);

	if (!error) {
		session_proof(migration->session.secret, "criu resume", 0, 0, proof);
		question.session_id = (ProtobufCBinaryData){SESSION_ID_BYTES, migration->session.id};
		question.proof = (ProtobufCBinaryData){sizeof(proof), proof};
		question.state = MIGRATE_COMMITTED;
		error = protocol_send(&again.protocol, MESSAGE_RESUME_SESSION, &question, &failure);
	}
	if (!error)
		error = protocol_expect(&again.protocol, MESSAGE_SESSION_STATUS, &failure, &message);
	if (error < 0) {
		session_close(&again);
		return error;
	}
	*ret_state = ((const SessionStatus *)message.body)->state;
	message_free(&message);
	session_close(&migration->session);
	migration->session = again;
	migration->session.protocol.stream = migration->session.control;
	return 0;
}

/* After COMMIT the destination decides, and this side must learn what. */
static int learn_outcome(struct migration *migration, bool *ret_runs_there)
{
	const struct timespec pause = {.tv_nsec = RECONNECT_PAUSE_MS * 1000000L};
	uint64_t until = migration_now_us() + RECONNECT_SECONDS * 1000000ULL;
	enum migrate_state state;

	while (migration_now_us() < until) {
		if (ask_again(migration, &state) < 0) {
			nanosleep(&pause, NULL);
			continue;
		}
		if (state == MIGRATE_READY) {
			failure_clear(&migration->failure);
			if (commit(migration) < 0 || wait_until_running(migration) < 0)
				continue;
			state = MIGRATE_RUNNING;
		}
		*ret_runs_there = state == MIGRATE_RUNNING || state == MIGRATE_DONE;
		return 0;
	}
	return -ETIMEDOUT;
}

static int tell_undecided(struct migration *migration)
{
	char object[64];

	failure_clear(&migration->failure);
	snprintf(object, sizeof(object), "process %d", migration->options->pid);
	return fail(
		&migration->failure, EREMCHG, "migrate-undecided", object,
		"look at the other side: criu migrate --status; then here --abort if it runs there, --resume if not",
		"the link broke while it was handed over, and the other side cannot be asked: it is kept here, "
		"stopped");
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
	if (migration->addresses_gone && !change_addresses(migration, address_add))
		change_addresses(migration, address_announce);
	migration->failure = cause;
	if (stopped_tree_resume(&options, &failure) < 0) {
		migration->failure = failure;
		fail_in(&migration->failure, "the migration failed (%s), and the tree, stopped here, cannot go on",
			cause.cause);
	}
	migration->stopped = false;
	return -migration->failure.error;
}

static int release(struct migration *migration)
{
	const struct stopped_options options = stopped_tree(migration);
	PostCopyDone released = POST_COPY_DONE__INIT;
	struct failure ignored = {};

	migration_reach(migration, "running");
	migration->summary.downtime_us = migration_now_us() - migration->freeze_us;
	int error = stopped_tree_kill(&options, &migration->failure);
	protocol_send(&migration->session.protocol, MESSAGE_RELEASED, &released, &ignored);
	return error;
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
		return release(migration);
	/* The destination has said that it could not, and that nothing of the tree is left there. */
	if (migration->session.protocol.state == MIGRATE_ABORTED)
		return take_back(migration);
	if (learn_outcome(migration, &runs_there) < 0)
		return tell_undecided(migration);
	if (!runs_there)
		return take_back(migration);
	failure_clear(&migration->failure);
	return release(migration);
}
