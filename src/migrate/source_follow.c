/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy at the source: the tree runs at the destination, and its memory is here, in the stopped tree, until the
 * destination has all of it. Nothing is remembered of what was given, so a new link, or a new criu, goes on as if it
 * were the first: all it needs is the tree and the session's secret (journal.h).
 */
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "migrate/migration.h"
#include "migrate/stream.h"

bool migration_pause(const struct wire_options *wire)
{
	enum { RECONNECT_PAUSE_MS = 500 };
	struct pollfd cancel = {wire->cancel_fd, POLLIN, 0};

	return poll(&cancel, 1, RECONNECT_PAUSE_MS) <= 0;
}

void migration_limit_silence(struct migration *migration)
{
	enum { BUSY_FACTOR = 20 };
	int silence_ms = (int)migration->options->link_timeout_seconds * 1000;

	stream_set_timeout(migration->session.control, silence_ms);
	migration->session.protocol.patience_ms = BUSY_FACTOR * silence_ms;
}

/* While memory follows, all it has to say is that it has come. */
static void allow_silence(struct migration *migration)
{
	stream_set_timeout(migration->session.control, -1);
	migration->session.protocol.patience_ms = 0;
}

void migration_note_end(struct migration *migration, bool ended, int status)
{
	if (!ended)
		return;
	migration->ended = true;
	migration->ended_status = status;
}

int migration_ask_again(struct migration *migration, enum migrate_state state, const struct wire_options *wire,
			struct failure *failure, enum migrate_state *ret_state, bool *ret_missing)
{
	struct session again = {};
	struct session_answer answer;

	/* The other side need not have seen that it is of no use: it waits there for what comes next. */
	if (migration->session.control)
		stream_shutdown(migration->session.control);
	int error = session_reconnect(&again, &migration->options->endpoint, wire, migration->session.id,
				      migration->session.secret, failure);

	if (!error)
		error = session_ask_status(&again, state, failure, &answer);
	if (error < 0) {
		session_close(&again);
		return error;
	}
	*ret_state = again.protocol.state;
	*ret_missing = answer.missing;
	migration_note_end(migration, answer.ended, answer.ended_status);
	/* Threads work on its connections. */
	migration_close_channel(migration);
	migration_end_demand(migration);
	session_close(&migration->session);
	migration->session = again;
	protocol_move(&migration->session.protocol, &again.protocol);
	migration_limit_silence(migration);
	return 0;
}

/* ---- connections for demand ---- */

int migration_open_demand(struct migration *migration)
{
	PostCopyStart start = POST_COPY_START__INIT;
	struct session *session = &migration->session;
	int error = 0;

	/* One for what tasks wait for, and as many as pages had before. */
	while (migration->demand_count < session->connections + 1 && !error) {
		error = session_open(session, CONNECTION_DEMAND, &migration->failure,
				     &migration->demand[migration->demand_count]);
		migration->demand_count += !error;
	}
	start.connections = (uint32_t)migration->demand_count;
	return error ? error : protocol_send(&session->protocol, MESSAGE_POST_COPY_START, &start, &migration->failure);
}

static enum frame_codec codec_of(const struct migration *migration)
{
	switch (migration->options->wire.codec) {
	case COMPRESS_LZ4:
		return FRAME_LZ4;
	case COMPRESS_ZSTD:
		return FRAME_ZSTD;
	default:
		return FRAME_RAW;
	}
}

int migration_serve_demand(struct migration *migration)
{
	enum frame_codec codec = codec_of(migration);
	const struct demand_server_options options = {
		.streams = migration->demand,
		.stream_count = migration->demand_count,
		.memory = &migration->memory,
		.codec = migration->session.codecs & 1U << codec ? codec : FRAME_RAW,
		.bytes_per_second = migration->options->wire.bandwidth,
	};

	return demand_server_new(&options, &migration->failure, &migration->demand_server);
}

void migration_end_demand(struct migration *migration)
{
	struct demand_statistics last = {};

	if (migration->demand_server)
		demand_server_statistics(migration->demand_server, &last);
	migration->followed.pages += last.pages;
	migration->followed.zero_pages += last.zero_pages;
	migration->followed.wire_bytes += last.wire_bytes;
	migration->followed.faults += last.faults;
	demand_server_free(migration->demand_server);
	migration->demand_server = NULL;
	for (size_t i = 0; i < migration->demand_count; i++)
		stream_close(&migration->demand[i]);
	migration->demand_count = 0;
}

/* ---- while it follows ---- */

static int connect_demand(struct migration *migration)
{
	int error = migration_open_demand(migration);

	return error ? error : migration_serve_demand(migration);
}

/* A new link to the destination. Returns 0 or a failure; *ret_missing: whether anything is left to give. */
static int come_back(struct migration *migration, bool *ret_missing)
{
	enum migrate_state state;
	int error = migration_ask_again(migration, MIGRATE_RUNNING, migration->wire, &migration->failure, &state,
					ret_missing);

	return error < 0 || !*ret_missing ? error : connect_demand(migration);
}

static int come_back_in_time(struct migration *migration, bool *ret_missing)
{
	uint64_t until = clock_now_us() + migration->options->link_timeout_seconds * 1000000ULL;
	char line[1024];
	int error;

	log_warn("%s; trying again", failure_line(&migration->failure, line, sizeof(line)));
	do {
		failure_clear(&migration->failure);
		error = come_back(migration, ret_missing);
	} while (error < 0 && clock_now_us() < until && migration_pause(migration->wire));
	return error;
}

static int tell_following(struct migration *migration)
{
	struct failure cause = migration->failure;
	char object[64];

	failure_clear(&migration->failure);
	snprintf(object, sizeof(object), "process %d", migration->options->pid);
	return fail(&migration->failure, EINPROGRESS, "migrate-following", object,
		    "repeat the same command: it goes on where it was; until then, end nothing here",
		    "it runs on the other side and waits for memory that is still here (%s)", cause.cause);
}

static int wait_until_complete(struct migration *migration)
{
	_cleanup_message_ struct message message = {};

	allow_silence(migration);
	/* From here on, giving up costs nothing but time. */
	stream_set_cancel(migration->session.control, migration->wire->cancel_fd);
	int error =
		protocol_expect(&migration->session.protocol, MESSAGE_POST_COPY_DONE, &migration->failure, &message);
	if (error < 0)
		return error;
	const PostCopyDone *done = (PostCopyDone *)message.body;
	migration_note_end(migration, done->has_ended, done->ended);
	return 0;
}

static bool is_cancelled(const struct migration *migration)
{
	return !strcmp(migration->failure.code, "cancelled");
}

int migration_follow(struct migration *migration)
{
	bool missing = true;
	int error = migration->demand_server ? 0 : connect_demand(migration);

	while (missing) {
		if (!error)
			error = wait_until_complete(migration);
		if (!error || is_cancelled(migration))
			break;
		error = come_back_in_time(migration, &missing);
		if (error < 0)
			break;
	}
	stream_set_cancel(migration->session.control, -1);
	migration_end_demand(migration);
	return error ? tell_following(migration) : 0;
}
