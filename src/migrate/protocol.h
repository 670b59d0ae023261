/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control connection of a migration: messages of migrate.proto, each behind a header of two little-endian words,
 * its length and its type. Both sides run the same state machine; a message that is out of its state, too long or
 * wrong in any field is refused here and nowhere else, so that what protocol_receive() gives can be trusted to be
 * well-formed (ids and addresses that must agree with earlier messages are the receiver's matter).
 *
 * State       Who sends what (→ the state that follows, on both sides)        Who may run the tree
 * NEW         source: HELLO → GREETING                                        source runs
 * GREETING    destination: HELLO_ANSWER → PREFLIGHT, or RESUMING if the
 *             hello said so                                                   source runs
 * PREFLIGHT   source: PREFLIGHT_REQUEST, FILE_DATA; destination:
 *             PREFLIGHT_ANSWER. After FILE_DATA the request is repeated.
 *             source: TREE → ROUNDS                                           source runs
 * ROUNDS      source: TREE, ROUND_BEGIN, ROUND_END, POST_COPY_START; ROUND_BEGIN
 *             with `last` → LAST_ROUND. destination: ROUND_ACK                source runs
 * LAST_ROUND  source: TREE, ROUND_END, FILE_DATA, IMAGE_CHUNK,
 *             IMAGES_END → RESTORING. destination: ROUND_ACK                  source only, frozen; it lets it run
 *                                                                             again if anything fails
 * RESTORING   destination: READY → READY                                      as above
 * READY       source: COMMIT → COMMITTED. The destination holds the tree
 *             one step before its first instruction.                          source, if it has not sent COMMIT;
 *                                                                             the destination must not
 * COMMITTED   destination: RUNNING → RUNNING, or ABORT: it could not, and
 *             has ended its copy                                              destination only. The source may run
 *                                                                             it again only after that ABORT
 * RUNNING     destination: POST_COPY_DONE (after post-copy only);
 *             source: POST_COPY_START, after a link that broke;
 *             RELEASED → DONE: it has ended its copy                  destination
 * DONE        nothing                                                         destination
 * ABORTED     nothing; comes after ABORT, which the source may send up to
 *             READY and the destination up to COMMITTED                       source
 * RESUMING    source: RESUME_SESSION; destination: SESSION_STATUS → the
 *             state that it names: READY, RUNNING, DONE or ABORTED            as that state says
 *
 * PROGRESS (destination) and PING, PONG (either) may come in every state from PREFLIGHT on.
 *
 * A link that breaks:
 *   up to RESTORING   the source lets its tree run on; the destination ends what it has built.
 *   READY, source has not sent COMMIT         the source lets its tree run on.
 *   READY, seen by the destination            it cannot know whether COMMIT is on its way: it keeps the tree, stopped,
 *                                             until a new connection says RESUME_SESSION, or the user decides there.
 *   COMMITTED, seen by the source             it cannot know whether COMMIT has arrived: it keeps the tree, stopped,
 *                                             until SESSION_STATUS or the user tells.
 *   RUNNING without post-copy                 the source ends its copy. With post-copy it keeps its pages until
 *                                             POST_COPY_DONE.
 * So never two run, and as READY ends by a message or a person only, never is none left.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

#include "migrate.pb-c.h"

struct stream;

enum { PROTOCOL_VERSION_MIN = 1, PROTOCOL_VERSION_MAX = 1 };
enum {
	SESSION_ID_BYTES = 16,
	SESSION_SECRET_BYTES = 32,
	SESSION_PROOF_BYTES = 32,
	MIGRATE_MAX_CONNECTIONS = 16,
	IMAGE_CHUNK_BYTES = 1 << 20, /* largest `data` of image_chunk and file_data */
	IMAGE_NAME_BYTES = 64,       /* of image_chunk.name with its end */
};

/* Bits of hello.features. */
enum migrate_feature {
	MIGRATE_FEATURE_POST_COPY = 1 << 0,
	MIGRATE_FEATURE_SEND_FILES = 1 << 1,
	MIGRATE_FEATURE_MOVE_ADDRESS = 1 << 2,
	MIGRATE_FEATURE_PID_NAMESPACE = 1 << 3,
};

enum migrate_side { MIGRATE_SOURCE = 0, MIGRATE_DESTINATION = 1 };

enum migrate_state {
	MIGRATE_NEW,
	MIGRATE_GREETING,
	MIGRATE_PREFLIGHT,
	MIGRATE_ROUNDS,
	MIGRATE_LAST_ROUND,
	MIGRATE_RESTORING,
	MIGRATE_READY,
	MIGRATE_COMMITTED,
	MIGRATE_RUNNING,
	MIGRATE_DONE,
	MIGRATE_ABORTED,
	MIGRATE_RESUMING,
	MIGRATE_STATE_COUNT,
};

/* What a connection besides the control connection is for. */
enum connection_role {
	CONNECTION_PAGES = 0,  /* of page_channel */
	CONNECTION_DEMAND = 1, /* faults of post-copy and their answers */
};

/* Types on the wire; the rows of protocol.c are in this order. */
enum message_type {
	MESSAGE_HELLO = 1,         /* MigrateHello */
	MESSAGE_HELLO_ANSWER,      /* MigrateHelloAnswer */
	MESSAGE_JOIN,              /* MigrateJoin; never on the control connection */
	MESSAGE_JOIN_ANSWER,       /* MigrateJoinAnswer; never on the control connection */
	MESSAGE_PREFLIGHT_REQUEST, /* PreflightRequest */
	MESSAGE_PREFLIGHT_ANSWER,  /* PreflightAnswer */
	MESSAGE_FILE_DATA,         /* FileData */
	MESSAGE_TREE,              /* MigrateTree */
	MESSAGE_ROUND_BEGIN,       /* RoundBegin */
	MESSAGE_ROUND_END,         /* RoundEnd; after the barrier of the page channel */
	MESSAGE_ROUND_ACK,         /* RoundAck */
	MESSAGE_IMAGE_CHUNK,       /* ImageChunk */
	MESSAGE_IMAGES_END,        /* ImagesEnd */
	MESSAGE_READY,             /* MigrateReady */
	MESSAGE_COMMIT,            /* MigrateCommit */
	MESSAGE_RUNNING,           /* MigrateRunning */
	MESSAGE_ABORT,             /* MigrateAbort */
	MESSAGE_POST_COPY_START,   /* PostCopyStart */
	MESSAGE_POST_COPY_DONE,    /* PostCopyDone */
	MESSAGE_RELEASED,          /* PostCopyDone, with the pages that were sent after COMMIT */
	MESSAGE_PROGRESS,          /* MigrateProgress */
	MESSAGE_PING,              /* MigratePing */
	MESSAGE_PONG,              /* MigratePing with the number of the ping */
	MESSAGE_RESUME_SESSION,    /* ResumeSession */
	MESSAGE_SESSION_STATUS,    /* SessionStatus */
	MESSAGE_TYPE_COUNT,
};

/* A received message; message_free() it. */
struct message {
	enum message_type type;
	ProtobufCMessage *body; /* of the type that the list above names, all fields checked */
};

/* One end of a control connection. */
struct protocol {
	struct stream *stream; /* borrowed */
	enum migrate_side side;
	enum migrate_state state;
	bool resumes;    /* the hello asked to resume */
	int patience_ms; /* how long protocol_expect() lets PROGRESS put it off; 0 = for ever */
	pthread_mutex_t send_lock;
};

/* @stream stays the caller's and outlives the protocol. */
void protocol_init(struct protocol *protocol, struct stream *stream, enum migrate_side side);
/* Goes on where @from is, with its stream. No thread may use either; @from is to be destroyed by nobody. */
void protocol_move(struct protocol *protocol, struct protocol *from);
void protocol_destroy(struct protocol *protocol);

/*
 * Sends a message and goes to the state that follows it. May be called by several threads. The state changes before
 * the first byte is sent: after a failed COMMIT the state is COMMITTED, because the other side may have it.
 * Returns 0 or a failure ("protocol-state" if this side may not send it now, or that of the link).
 */
int protocol_send(struct protocol *protocol, enum message_type type, const void *message, struct failure *failure);

/*
 * Waits for the next message, checks it and goes to the state that follows it. PING is answered inside, PONG dropped.
 * ABORT is given out like every message. One thread at a time. Returns 0 or a failure.
 */
int protocol_receive(struct protocol *protocol, struct failure *failure, struct message *ret_message);
/*
 * Like protocol_receive(), for a message that must be of @type; PROGRESS messages in between are passed over, for
 * patience_ms at most ("link-timeout").
 * ABORT becomes the failure that the other side had, with "destination: " or "source: " before its object.
 */
int protocol_expect(struct protocol *protocol, enum message_type type, struct failure *failure,
		    struct message *ret_message);

/* Tells the other side why this one gives up, if the state allows it; never fails. State becomes ABORTED. */
void protocol_send_abort(struct protocol *protocol, const struct failure *failure);
/* Records the failure that an ABORT message carries. @who: "destination" or "source". Returns -errno. */
int protocol_take_abort(const MigrateAbort *abort, const char *who, struct failure *failure);

void message_free(struct message *message);
#define _cleanup_message_ __attribute__((cleanup(message_free)))

/* ---- without a state: for connections that join a session, and for the fuzzer ---- */

/* Sends one message. Returns 0 or a failure. */
int message_send(struct stream *stream, enum message_type type, const void *message, struct failure *failure);
/* Receives one message of any of the types in @types (bits 1 << type). Returns 0 or a failure. */
int message_receive(struct stream *stream, uint32_t types, struct failure *failure, struct message *ret_message);
/* Decodes and checks @size bytes as a message of @type. Returns 0 or a failure "protocol-message". */
int message_decode(enum message_type type, const uint8_t *bytes, size_t size, struct failure *failure,
		   struct message *ret_message);
/* Longest body of @type in bytes, 0 if there is no such type. */
size_t message_limit_bytes(uint32_t type);
/* "ROUND_BEGIN", for failures and the log. */
const char *message_name(uint32_t type);
const char *migrate_state_name(enum migrate_state state);

/* HMAC-SHA256 of @label and two numbers with the session's secret. */
void session_proof(const uint8_t secret[SESSION_SECRET_BYTES], const char *label, uint32_t first, uint32_t second,
		   uint8_t ret_proof[SESSION_PROOF_BYTES]);
/* Compares in constant time. */
bool session_proof_equal(const uint8_t *left, const uint8_t *right);
