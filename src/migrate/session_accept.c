/* SPDX-License-Identifier: Apache-2.0 */
/* The side of a session that is connected to. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "migrate/door.h"
#include "migrate/journal.h"
#include "migrate/session.h"
#include "migrate/session_link.h"
#include "migrate/stream.h"

/* ---- HELLO ---- */

static int check_versions(const MigrateHello *hello, struct failure *failure)
{
	if (hello->version_min <= PROTOCOL_VERSION_MAX && hello->version_max >= PROTOCOL_VERSION_MIN)
		return 0;
	return fail(failure, EPROTO, "protocol-version", hello->host, "install the same criu on both machines",
		    "criu %s there speaks versions %u to %u, this one %d to %d", hello->criu_version,
		    hello->version_min, hello->version_max, PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX);
}

static int send_hello_answer(struct session *session, const MigrateHello *hello, struct failure *failure)
{
	MigrateHelloAnswer answer = MIGRATE_HELLO_ANSWER__INIT;
	char host[65];

	session_host_name(host, sizeof(host));
	answer.version = hello->version_max < PROTOCOL_VERSION_MAX ? hello->version_max : PROTOCOL_VERSION_MAX;
	answer.criu_version = (char *)CRIU_VERSION;
	answer.features = session->features;
	answer.connections = session->connections;
	answer.codecs = session->codecs;
	answer.host = host;
	answer.join_id = session->join_id;
	return protocol_send(&session->protocol, MESSAGE_HELLO_ANSWER, &answer, failure);
}

static int receive_hello(struct session *session, struct failure *failure, struct message *ret_message)
{
	int r = protocol_expect(&session->protocol, MESSAGE_HELLO, failure, ret_message);
	if (r < 0)
		return r;
	const MigrateHello *hello = (MigrateHello *)ret_message->body;
	r = check_versions(hello, failure);
	if (r < 0)
		return r;
	if (memcmp(hello->session_id.data, session->id, SESSION_ID_BYTES))
		return fail(failure, EPROTO, "protocol-message", stream_peer(session->control), NULL,
			    "the session has another id than its connection said");
	return 0;
}

static void take_hello(struct session *session, const MigrateHello *hello)
{
	unsigned wanted = session->options->connections ?: MIGRATE_MAX_CONNECTIONS;

	memcpy(session->secret, hello->session_secret.data, SESSION_SECRET_BYTES);
	session->features = hello->features & session->options->features;
	session->connections = hello->connections < wanted ? hello->connections : wanted;
	session->codecs = hello->codecs & SESSION_CODECS;
	session->dry_run = hello->has_dry_run && hello->dry_run;
	session->peer_pid = hello->pid;
	snprintf(session->peer_host, sizeof(session->peer_host), "%s", hello->host);
	snprintf(session->peer_comm, sizeof(session->peer_comm), "%s", hello->comm);
}

/* TLS if there is one, and the rules of every stream of a session. */
static int start_link(struct session *session, struct stream **stream, struct failure *failure)
{
	stream_set_cancel(*stream, session->options->cancel_fd);
	stream_set_timeout(*stream, SESSION_SETUP_TIMEOUT_MS);
	return session->tls ? tls_start(stream, session->tls, true, NULL, failure) : 0;
}

static int finish_return(struct session *session, const MigrateHello *hello, struct failure *failure,
			 enum migrate_state *ret_peer_state)
{
	_cleanup_message_ struct message message = {};
	uint8_t proof[SESSION_PROOF_BYTES];

	int r = send_hello_answer(session, hello, failure);
	if (!r)
		r = protocol_expect(&session->protocol, MESSAGE_RESUME_SESSION, failure, &message);
	if (r < 0)
		return r;
	const ResumeSession *resume = (ResumeSession *)message.body;
	session_proof(session->secret, SESSION_RESUME_LABEL, resume->state, 0, proof);
	if (!session_proof_equal(resume->proof.data, proof))
		return fail(failure, EACCES, "session-proof", session->peer_host, NULL,
			    "something connected that cannot prove that it belongs to this session");
	*ret_peer_state = resume->state;
	return 0;
}

/* A source comes back to a session whose process has ended. What that process wrote down says who may. */
static int recognise(struct session *session, const MigrateHello *hello, struct failure *failure)
{
	uint8_t secret[SESSION_SECRET_BYTES];
	enum migrate_state peer_state;
	struct journal journal;

	int r = journal_find_session(failure, JOURNAL_DESTINATION, session->join_id, &journal);
	if (r < 0 && failure_is_set(failure))
		return r;
	if (r < 0 || journal.state != JOURNAL_FETCHING || journal_secret(&journal, secret) < 0 ||
	    !session_proof_equal(hello->session_secret.data, secret))
		return fail(
			failure, ENOENT, "session-unknown", session->peer_host,
			"look whether the tree runs here; if not, `criu migrate --resume` or --abort decides at the "
			"source",
			"no session waits here for its source to come back: its tree has ended, or was given up");
	session->resume = true;
	r = finish_return(session, hello, failure, &peer_state);
	stream_set_timeout(session->control, -1);
	return r;
}

static int accept_session(struct session *session, struct session_entry *entry, const struct wire_options *options,
			  struct failure *failure)
{
	_cleanup_message_ struct message message = {};

	*session = (struct session){.side = MIGRATE_DESTINATION, .options = options, .tls = entry->tls};
	memcpy(session->id, entry->id, sizeof(session->id));
	session_id_text(session->id, session->join_id);
	session->control = TAKE_POINTER(entry->stream);
	protocol_init(&session->protocol, session->control, MIGRATE_DESTINATION);
	int r = door_open(session->id, &session->door_fd);
	if (r < 0)
		return fail_errno(failure, r, "session-door", "session", NULL, "it cannot take more connections");
	session->door_is_open = true;
	r = start_link(session, &session->control, failure);
	session->protocol.stream = session->control;
	if (!r)
		r = receive_hello(session, failure, &message);
	if (r < 0)
		return r;
	const MigrateHello *hello = (MigrateHello *)message.body;
	take_hello(session, hello);
	if (session->protocol.resumes)
		return recognise(session, hello, failure);
	r = send_hello_answer(session, hello, failure);
	if (!r && !session->dry_run)
		r = session_accept_data(session, failure);
	stream_set_timeout(session->control, -1);
	return r;
}

int session_accept(struct session *session, struct session_entry *entry, const struct wire_options *options,
		   struct failure *failure)
{
	int r = accept_session(session, entry, options, failure);

	if (r < 0 && session->control)
		protocol_send_abort(&session->protocol, failure);
	return r;
}

/* ---- further connections ---- */

static int read_preamble(struct session *session, struct stream *stream, enum preamble_kind *kind,
			 struct failure *failure)
{
	uint8_t preamble[PREAMBLE_BYTES], id[SESSION_ID_BYTES];

	int r = stream_read_full(stream, preamble, sizeof(preamble));
	if (r < 0)
		return stream_fail(stream, r, failure);
	r = preamble_decode(preamble, kind, id);
	if (r < 0 || memcmp(id, session->id, sizeof(id)))
		return fail(failure, EPROTO, "session-preamble", stream_peer(stream), NULL,
			    "something connected that does not belong to this session");
	return 0;
}

/* Takes one connection from the door and brings it to where messages can be read. */
static int take_link(struct session *session, struct failure *failure, enum preamble_kind *ret_kind,
		     struct stream **ret_stream)
{
	_cleanup_stream_ struct stream *stream = NULL;
	enum preamble_kind kind;
	int fds[2], holder;

	int r = door_accept(session->door_fd, &kind, fds, &holder);
	if (r < 0)
		return fail_errno(failure, r, "session-door", "session", NULL, "a connection cannot be taken in");
	r = stream_from_fds(fds[0], fds[1], session->peer_host, &stream);
	if (r < 0) {
		close(holder);
		return fail_errno(failure, r, "session-door", "session", NULL, "a connection cannot be taken in");
	}
	stream->holder_fd = holder;
	stream_set_timeout(stream, SESSION_SETUP_TIMEOUT_MS);
	if (kind == PREAMBLE_UNREAD)
		r = read_preamble(session, stream, &kind, failure);
	if (!r)
		r = start_link(session, &stream, failure);
	if (r < 0)
		return r;
	*ret_kind = kind;
	*ret_stream = TAKE_POINTER(stream);
	return 0;
}

static int answer_join(struct session *session, struct stream *stream, struct failure *failure,
		       enum connection_role *ret_role, uint32_t *ret_index)
{
	_cleanup_message_ struct message message = {};
	MigrateJoinAnswer answer = MIGRATE_JOIN_ANSWER__INIT;
	uint8_t proof[SESSION_PROOF_BYTES];

	int r = message_receive(stream, 1u << MESSAGE_JOIN, failure, &message);
	if (r < 0)
		return r;
	const MigrateJoin *join = (MigrateJoin *)message.body;
	session_proof(session->secret, SESSION_JOIN_LABEL, join->role, join->index, proof);
	if (memcmp(join->session_id.data, session->id, SESSION_ID_BYTES) ||
	    !session_proof_equal(proof, join->proof.data))
		return fail(failure, EACCES, "session-proof", stream_peer(stream), NULL,
			    "something connected that cannot prove that it belongs to this session");
	if (join->role == CONNECTION_PAGES && join->index >= session->connections)
		return fail(failure, EPROTO, "protocol-message", stream_peer(stream), NULL,
			    "a connection has number %u of %u", join->index, session->connections);
	answer.index = join->index;
	r = message_send(stream, MESSAGE_JOIN_ANSWER, &answer, failure);
	if (r < 0)
		return r;
	stream_set_timeout(stream, -1);
	*ret_role = join->role;
	*ret_index = join->index;
	return 0;
}

/* Waits for somebody at the door. Returns 0 or a failure. */
static int wait_at_door(struct session *session, int64_t end_ms, struct failure *failure)
{
	struct pollfd waits[2] = {{.fd = session->door_fd, .events = POLLIN},
				  {.fd = session->options->cancel_fd, .events = POLLIN}};
	int ready;

	do {
		int64_t left_ms = end_ms < 0 ? -1 : end_ms - clock_now_ms();

		ready = poll(waits, session->options->cancel_fd >= 0 ? 2 : 1,
			     end_ms < 0    ? -1
			     : left_ms > 0 ? (int)left_ms
					   : 0);
	} while (ready < 0 && errno == EINTR);
	if (ready < 0)
		return fail_errno(failure, errno, "session-door", "session", NULL, "cannot wait for connections");
	if (!ready)
		return fail(failure, ETIMEDOUT, "session-join-timeout", session->peer_host, NULL,
			    "a connection that was announced does not come");
	if (waits[1].revents)
		return fail(failure, ECANCELED, "cancelled", NULL, NULL, "cancelled");
	return 0;
}

static void log_refused(struct failure *refused)
{
	char line[1024];

	log_warn("%s", failure_line(refused, line, sizeof(line)));
	failure_clear(refused);
}

/*
 * One connection from the door, if it says it is of @wanted; another is told of and dropped, and *ret_stream is NULL.
 * @what says what one of another kind is. Returns 0 or a failure.
 */
static int one_link(struct session *session, int64_t end_ms, enum preamble_kind wanted, const char *what,
		    struct failure *failure, struct stream **ret_stream)
{
	_cleanup_stream_ struct stream *stream = NULL;
	struct failure refused = {};
	enum preamble_kind kind;

	int r = wait_at_door(session, end_ms, failure);
	if (r < 0)
		return r;
	r = take_link(session, &refused, &kind, &stream);
	if (!r && kind != wanted)
		r = fail(&refused, EPROTO, "session-preamble", stream_peer(stream), NULL, "%s", what);
	if (r < 0)
		log_refused(&refused);
	*ret_stream = r < 0 ? NULL : TAKE_POINTER(stream);
	return 0;
}

int session_accept_connection(struct session *session, int timeout_ms, struct failure *failure,
			      enum connection_role *ret_role, uint32_t *ret_index, struct stream **ret_stream)
{
	int64_t end_ms = timeout_ms < 0 ? -1 : clock_now_ms() + timeout_ms;
	_cleanup_stream_ struct stream *stream = NULL;
	struct failure refused = {};

	*ret_stream = NULL;
	int r = one_link(session, end_ms, PREAMBLE_JOIN,
			 "the source came back although its connection is not known to be lost", failure, &stream);
	if (r < 0 || !stream)
		return r;
	if (answer_join(session, stream, &refused, ret_role, ret_index) < 0)
		log_refused(&refused);
	else
		*ret_stream = TAKE_POINTER(stream);
	return 0;
}

int session_accept_data(struct session *session, struct failure *failure)
{
	while (session->data_count < session->connections) {
		_cleanup_stream_ struct stream *stream = NULL;
		enum connection_role role;
		uint32_t index;

		int r = session_accept_connection(session, SESSION_JOIN_TIMEOUT_MS, failure, &role, &index, &stream);
		if (r < 0)
			return r;
		if (!stream)
			continue;
		if (role != CONNECTION_PAGES || session->data[index])
			return fail(failure, EPROTO, "protocol-message", session->peer_host, NULL,
				    "a connection came that was not to come");
		session->data[index] = TAKE_POINTER(stream);
		session->data_count++;
	}
	return 0;
}

/* ---- the source comes back ---- */

static int answer_return(struct session *session, struct protocol *protocol, struct failure *failure,
			 enum migrate_state *ret_peer_state)
{
	_cleanup_message_ struct message message = {};

	int r = receive_hello(session, failure, &message);
	if (r < 0)
		return r;
	const MigrateHello *hello = (MigrateHello *)message.body;
	if (!protocol->resumes || !session_proof_equal(hello->session_secret.data, session->secret))
		return fail(failure, EACCES, "session-proof", session->peer_host, NULL,
			    "something connected that cannot prove that it belongs to this session");
	return finish_return(session, hello, failure, ret_peer_state);
}

/* The old connections are of no more use. */
static void drop_links(struct session *session)
{
	for (size_t i = 0; i < ARRAY_SIZE(session->data); i++)
		stream_close(&session->data[i]);
	session->data_count = 0;
	if (session->control)
		protocol_destroy(&session->protocol);
	stream_close(&session->control);
}

int session_await_return(struct session *session, int timeout_ms, struct failure *failure,
			 enum migrate_state *ret_peer_state)
{
	int64_t end_ms = timeout_ms < 0 ? -1 : clock_now_ms() + timeout_ms;

	for (;;) {
		_cleanup_stream_ struct stream *stream = NULL;
		struct failure refused = {};

		int r = one_link(session, end_ms, PREAMBLE_RETURN,
				 "a connection for pages came where the source was to come back", failure, &stream);
		if (r < 0)
			return r;
		if (!stream)
			continue;
		drop_links(session);
		session->control = TAKE_POINTER(stream);
		protocol_init(&session->protocol, session->control, MIGRATE_DESTINATION);
		r = answer_return(session, &session->protocol, &refused, ret_peer_state);
		if (!r) {
			stream_set_timeout(session->control, -1);
			return 0;
		}
		protocol_send_abort(&session->protocol, &refused);
		drop_links(session);
		log_refused(&refused);
	}
}
