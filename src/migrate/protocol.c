/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/protocol.h"

#include <endian.h>
#include <errno.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "migrate/protocol_check.h"
#include "migrate/stream.h"

enum { KIB = 1 << 10, MIB = 1 << 20, ANY_SIDE = -1, BODY_TIMEOUT_MS = 15000 };
#define NO_STATE MIGRATE_STATE_COUNT

#define IN(state) (1u << MIGRATE_##state)
#define UP_TO(state) ((1u << (MIGRATE_##state + 1)) - 1)
#define TALKING ((1u << MIGRATE_STATE_COUNT) - (1u << MIGRATE_PREFLIGHT))

/* One row for each type: how long, who sends it in which states, and what follows. */
static const struct message_row {
	const char *name;
	const ProtobufCMessageDescriptor *descriptor;
	size_t limit_bytes;
	int side; /* enum migrate_side that sends it, or ANY_SIDE */
	uint32_t states;
	enum migrate_state next; /* NO_STATE = stays, or depends on the content */
} rows[MESSAGE_TYPE_COUNT] = {
	[MESSAGE_HELLO] = {"HELLO", &migrate_hello__descriptor, 4 * KIB, MIGRATE_SOURCE, IN(NEW), MIGRATE_GREETING},
	[MESSAGE_HELLO_ANSWER] = {"HELLO_ANSWER", &migrate_hello_answer__descriptor, 4 * KIB, MIGRATE_DESTINATION,
				  IN(GREETING), NO_STATE},
	[MESSAGE_JOIN] = {"JOIN", &migrate_join__descriptor, KIB, MIGRATE_SOURCE, 0, NO_STATE},
	[MESSAGE_JOIN_ANSWER] = {"JOIN_ANSWER", &migrate_join_answer__descriptor, KIB, MIGRATE_DESTINATION, 0,
				 NO_STATE},
	[MESSAGE_PREFLIGHT_REQUEST] = {"PREFLIGHT_REQUEST", &preflight_request__descriptor, 64 * MIB, MIGRATE_SOURCE,
				       IN(PREFLIGHT), NO_STATE},
	[MESSAGE_PREFLIGHT_ANSWER] = {"PREFLIGHT_ANSWER", &preflight_answer__descriptor, 64 * MIB, MIGRATE_DESTINATION,
				      IN(PREFLIGHT), NO_STATE},
	[MESSAGE_FILE_DATA] = {"FILE_DATA", &file_data__descriptor, IMAGE_CHUNK_BYTES + KIB, MIGRATE_SOURCE,
			       IN(PREFLIGHT) | IN(LAST_ROUND), NO_STATE},
	[MESSAGE_TREE] = {"TREE", &migrate_tree__descriptor, 64 * MIB, MIGRATE_SOURCE,
			  IN(PREFLIGHT) | IN(ROUNDS) | IN(LAST_ROUND), NO_STATE},
	[MESSAGE_ROUND_BEGIN] = {"ROUND_BEGIN", &round_begin__descriptor, KIB, MIGRATE_SOURCE, IN(ROUNDS), NO_STATE},
	[MESSAGE_ROUND_END] = {"ROUND_END", &round_end__descriptor, KIB, MIGRATE_SOURCE, IN(ROUNDS) | IN(LAST_ROUND),
			       NO_STATE},
	[MESSAGE_ROUND_ACK] = {"ROUND_ACK", &round_ack__descriptor, KIB, MIGRATE_DESTINATION,
			       IN(ROUNDS) | IN(LAST_ROUND) | IN(RESTORING), NO_STATE},
	[MESSAGE_IMAGE_CHUNK] = {"IMAGE_CHUNK", &image_chunk__descriptor, IMAGE_CHUNK_BYTES + KIB, MIGRATE_SOURCE,
				 IN(LAST_ROUND), NO_STATE},
	[MESSAGE_IMAGES_END] = {"IMAGES_END", &images_end__descriptor, KIB, MIGRATE_SOURCE, IN(LAST_ROUND),
				MIGRATE_RESTORING},
	[MESSAGE_READY] = {"READY", &migrate_ready__descriptor, KIB, MIGRATE_DESTINATION, IN(RESTORING), MIGRATE_READY},
	[MESSAGE_COMMIT] = {"COMMIT", &migrate_commit__descriptor, KIB, MIGRATE_SOURCE, IN(READY), MIGRATE_COMMITTED},
	[MESSAGE_RUNNING] = {"RUNNING", &migrate_running__descriptor, KIB, MIGRATE_DESTINATION, IN(COMMITTED),
			     MIGRATE_RUNNING},
	[MESSAGE_ABORT] = {"ABORT", &migrate_abort__descriptor, 8 * KIB, ANY_SIDE, 0, MIGRATE_ABORTED},
	[MESSAGE_POST_COPY_START] = {"POST_COPY_START", &post_copy_start__descriptor, KIB, MIGRATE_SOURCE,
				     IN(ROUNDS) | IN(RUNNING), NO_STATE},
	[MESSAGE_POST_COPY_DONE] = {"POST_COPY_DONE", &post_copy_done__descriptor, KIB, MIGRATE_DESTINATION,
				    IN(RUNNING), NO_STATE},
	[MESSAGE_RELEASED] = {"RELEASED", &post_copy_done__descriptor, KIB, MIGRATE_SOURCE, IN(RUNNING), MIGRATE_DONE},
	[MESSAGE_PROGRESS] = {"PROGRESS", &migrate_progress__descriptor, KIB, MIGRATE_DESTINATION, TALKING, NO_STATE},
	[MESSAGE_PING] = {"PING", &migrate_ping__descriptor, KIB, ANY_SIDE, TALKING, NO_STATE},
	[MESSAGE_PONG] = {"PONG", &migrate_ping__descriptor, KIB, ANY_SIDE, TALKING, NO_STATE},
	[MESSAGE_RESUME_SESSION] = {"RESUME_SESSION", &resume_session__descriptor, KIB, MIGRATE_SOURCE, IN(RESUMING),
				    NO_STATE},
	[MESSAGE_SESSION_STATUS] = {"SESSION_STATUS", &session_status__descriptor, KIB, MIGRATE_DESTINATION,
				    IN(RESUMING), NO_STATE},
};

static const char *const state_names[MIGRATE_STATE_COUNT] = {
	[MIGRATE_NEW] = "NEW",       [MIGRATE_GREETING] = "GREETING",     [MIGRATE_PREFLIGHT] = "PREFLIGHT",
	[MIGRATE_ROUNDS] = "ROUNDS", [MIGRATE_LAST_ROUND] = "LAST_ROUND", [MIGRATE_RESTORING] = "RESTORING",
	[MIGRATE_READY] = "READY",   [MIGRATE_COMMITTED] = "COMMITTED",   [MIGRATE_RUNNING] = "RUNNING",
	[MIGRATE_DONE] = "DONE",     [MIGRATE_ABORTED] = "ABORTED",       [MIGRATE_RESUMING] = "RESUMING",
};

const char *migrate_state_name(enum migrate_state state)
{
	return (unsigned)state < MIGRATE_STATE_COUNT ? state_names[state] : "unknown";
}

const char *message_name(uint32_t type)
{
	return type < MESSAGE_TYPE_COUNT && rows[type].name ? rows[type].name : "unknown message";
}

size_t message_limit_bytes(uint32_t type)
{
	return type < MESSAGE_TYPE_COUNT ? rows[type].limit_bytes : 0;
}

/* ---- bytes ---- */

struct message_header {
	uint32_t length;
	uint32_t type;
};

int message_send(struct stream *stream, enum message_type type, const void *message, struct failure *failure)
{
	size_t size = protobuf_c_message_get_packed_size(message);

	if (size > message_limit_bytes(type))
		return fail(failure, EMSGSIZE, "protocol-message", message_name(type), NULL,
			    "%zu bytes are more than the protocol can carry", size);
	_cleanup_free_ uint8_t *bytes = xcalloc(1, sizeof(struct message_header) + size);
	const struct message_header header = {htole32((uint32_t)size), htole32(type)};
	memcpy(bytes, &header, sizeof(header));
	protobuf_c_message_pack(message, bytes + sizeof(header));
	int r = stream_write_full(stream, bytes, sizeof(header) + size);
	return r < 0 ? stream_fail(stream, r, failure) : 0;
}

int message_decode(enum message_type type, const uint8_t *bytes, size_t size, struct failure *failure,
		   struct message *ret_message)
{
	struct message message = {.type = type};

	if (!message_limit_bytes(type) || size > message_limit_bytes(type))
		return fail(failure, EPROTO, "protocol-message", message_name(type), NULL,
			    "a message of a wrong type or length arrived");
	message.body = protobuf_c_message_unpack(rows[type].descriptor, NULL, size, bytes);
	if (!message.body)
		return fail(failure, EPROTO, "protocol-message", message_name(type), NULL,
			    "a message arrived that cannot be decoded");
	int r = message_check(&message, failure);
	if (r < 0) {
		message_free(&message);
		return r;
	}
	*ret_message = message;
	return 0;
}

void message_free(struct message *message)
{
	if (message->body)
		protobuf_c_message_free_unpacked(message->body, NULL);
	message->body = NULL;
}

int message_receive(struct stream *stream, uint32_t types, struct failure *failure, struct message *ret_message)
{
	struct message_header header;

	int r = stream_read_full(stream, &header, sizeof(header));
	if (r < 0)
		return stream_fail(stream, r, failure);
	uint32_t length = le32toh(header.length), type = le32toh(header.type);
	/* Before memory is taken for it. */
	if (type >= MESSAGE_TYPE_COUNT || !(types & (1u << type)) || length > message_limit_bytes(type))
		return fail(failure, EPROTO, "protocol-message", stream_peer(stream),
			    "is it a criu of the same version that answers there?",
			    "%s of %u bytes arrived, which is not allowed now", message_name(type), length);
	_cleanup_free_ uint8_t *bytes = malloc(length + 1);
	if (!bytes)
		return fail(failure, ENOMEM, "memory", stream_peer(stream), NULL, "no memory for a message");
	/* A length that was spoilt on the way would make both sides wait for each other. */
	int timeout_ms = stream->timeout_ms;
	stream_set_timeout(stream, BODY_TIMEOUT_MS);
	r = stream_read_full(stream, bytes, length);
	stream_set_timeout(stream, timeout_ms);
	if (r < 0)
		return stream_fail(stream, r, failure);
	r = message_decode(type, bytes, length, failure, ret_message);
	return r < 0 ? fail_in(failure, "%s", stream_peer(stream)) : 0;
}

/* ---- states ---- */

void protocol_init(struct protocol *protocol, struct stream *stream, enum migrate_side side)
{
	*protocol = (struct protocol){.stream = stream, .side = side, .state = MIGRATE_NEW};
	pthread_mutex_init(&protocol->send_lock, NULL);
}

void protocol_move(struct protocol *protocol, struct protocol *from)
{
	pthread_mutex_destroy(&from->send_lock);
	*protocol = *from;
	pthread_mutex_init(&protocol->send_lock, NULL);
}

void protocol_destroy(struct protocol *protocol)
{
	pthread_mutex_destroy(&protocol->send_lock);
	protocol->stream = NULL;
}

static bool is_allowed(const struct protocol *protocol, enum migrate_side sender, uint32_t type)
{
	uint32_t states = rows[type].states;

	if (type == MESSAGE_ABORT)
		states = IN(RESUMING) | (sender == MIGRATE_SOURCE ? UP_TO(READY) : UP_TO(COMMITTED));
	if (rows[type].side != ANY_SIDE && rows[type].side != (int)sender)
		return false;
	return rows[type].name && (states & (1u << protocol->state));
}

/* All types that the other side may send now, as bits. */
static uint32_t allowed_types(const struct protocol *protocol)
{
	enum migrate_side sender = protocol->side == MIGRATE_SOURCE ? MIGRATE_DESTINATION : MIGRATE_SOURCE;
	uint32_t types = 0;

	for (uint32_t type = 1; type < MESSAGE_TYPE_COUNT; type++)
		if (is_allowed(protocol, sender, type))
			types |= 1u << type;
	return types;
}

static void advance(struct protocol *protocol, enum message_type type, const void *message)
{
	if (type == MESSAGE_HELLO) {
		const MigrateHello *hello = message;

		protocol->resumes = hello->has_resume && hello->resume;
	}
	if (rows[type].next != NO_STATE)
		protocol->state = rows[type].next;
	else if (type == MESSAGE_HELLO_ANSWER)
		protocol->state = protocol->resumes ? MIGRATE_RESUMING : MIGRATE_PREFLIGHT;
	else if (type == MESSAGE_TREE && protocol->state == MIGRATE_PREFLIGHT)
		protocol->state = MIGRATE_ROUNDS;
	else if (type == MESSAGE_ROUND_BEGIN && ((const RoundBegin *)message)->last)
		protocol->state = MIGRATE_LAST_ROUND;
	else if (type == MESSAGE_SESSION_STATUS)
		protocol->state = ((const SessionStatus *)message)->state;
}

int protocol_send(struct protocol *protocol, enum message_type type, const void *message, struct failure *failure)
{
	int r;

	pthread_mutex_lock(&protocol->send_lock);
	if (!is_allowed(protocol, protocol->side, type)) {
		r = fail(failure, EPROTO, "protocol-state", message_name(type), NULL, "cannot be sent in state %s",
			 migrate_state_name(protocol->state));
	} else {
		advance(protocol, type, message);
		r = message_send(protocol->stream, type, message, failure);
	}
	pthread_mutex_unlock(&protocol->send_lock);
	return r;
}

int protocol_receive(struct protocol *protocol, struct failure *failure, struct message *ret_message)
{
	for (;;) {
		struct message message;

		int r = message_receive(protocol->stream, allowed_types(protocol), failure, &message);
		if (r < 0)
			return r;
		if (message.type != MESSAGE_PING && message.type != MESSAGE_PONG) {
			pthread_mutex_lock(&protocol->send_lock);
			advance(protocol, message.type, message.body);
			pthread_mutex_unlock(&protocol->send_lock);
			*ret_message = message;
			return 0;
		}
		if (message.type == MESSAGE_PING)
			r = protocol_send(protocol, MESSAGE_PONG, message.body, failure);
		message_free(&message);
		if (r < 0)
			return r;
	}
}

int protocol_take_abort(const MigrateAbort *abort, const char *who, struct failure *failure)
{
	fail(failure, abort->error, abort->code, abort->object, abort->hint, "%s", abort->cause);
	return fail_in(failure, "%s", who);
}

int protocol_expect(struct protocol *protocol, enum message_type type, struct failure *failure,
		    struct message *ret_message)
{
	const char *peer = protocol->side == MIGRATE_SOURCE ? "destination" : "source";
	int64_t end_ms = clock_now_ms() + protocol->patience_ms;

	for (;;) {
		_cleanup_message_ struct message message = {};

		int r = protocol_receive(protocol, failure, &message);
		if (r < 0)
			return r;
		if (message.type == type) {
			*ret_message = message;
			message.body = NULL;
			return 0;
		}
		if (message.type == MESSAGE_ABORT)
			return protocol_take_abort((MigrateAbort *)message.body, peer, failure);
		if (message.type != MESSAGE_PROGRESS)
			return fail(failure, EPROTO, "protocol-state", stream_peer(protocol->stream), NULL,
				    "%s arrived where %s was to come", message_name(message.type), message_name(type));
		if (protocol->patience_ms && clock_now_ms() >= end_ms)
			return fail(failure, ETIMEDOUT, "link-timeout", stream_peer(protocol->stream),
				    "its log says what it is busy with", "the other side has been busy for %d s",
				    protocol->patience_ms / 1000);
	}
}

void protocol_send_abort(struct protocol *protocol, const struct failure *failure)
{
	MigrateAbort abort = MIGRATE_ABORT__INIT;
	struct failure ignored = {};

	/* Nothing is connected yet, or any more. */
	if (!protocol->stream)
		return;
	abort.error = failure->error ? failure->error : ECANCELED;
	abort.code = (char *)failure->code;
	abort.object = (char *)failure->object;
	abort.cause = (char *)failure->cause;
	abort.hint = (char *)failure->hint;
	if (protocol_send(protocol, MESSAGE_ABORT, &abort, &ignored) == 0)
		stream_linger(protocol->stream);
}

/* ---- proofs ---- */

void session_proof(const uint8_t secret[SESSION_SECRET_BYTES], const char *label, uint32_t first, uint32_t second,
		   uint8_t ret_proof[SESSION_PROOF_BYTES])
{
	struct hmac_sha256_ctx hmac;
	uint8_t text[64] = {};
	const uint32_t numbers[2] = {htole32(first), htole32(second)};

	strncpy((char *)text, label, sizeof(text) - sizeof(numbers) - 1);
	memcpy(text + sizeof(text) - sizeof(numbers), numbers, sizeof(numbers));
	hmac_sha256_set_key(&hmac, SESSION_SECRET_BYTES, secret);
	hmac_sha256_update(&hmac, sizeof(text), text);
	hmac_sha256_digest(&hmac, SESSION_PROOF_BYTES, ret_proof);
}

bool session_proof_equal(const uint8_t *left, const uint8_t *right)
{
	return memeql_sec(left, right, SESSION_PROOF_BYTES);
}
