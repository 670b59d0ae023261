/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connections of one migration: a control connection and those that carry pages. The source connects, the
 * destination accepts; a later connection proves by an HMAC with the session's secret that it belongs to the session.
 *
 * Every connection starts with a preamble in clear text (magic, whether it is a first or a further connection, and the
 * public id of the session), so that the process that listens can hand the descriptor to the process that serves the
 * session before TLS starts.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "migrate/endpoint.h"
#include "migrate/protocol.h"
#include "migrate/ssh.h"
#include "migrate/tls.h"

struct stream;

/* What the user said about the wire; const. Both sides. */
struct wire_options {
	unsigned connections;      /* that carry pages; 0 = 4 (ssh: 2) */
	int codec;                 /* --compress: enum compress_mode of frames.h */
	uint64_t bandwidth;        /* bytes a second; 0 = no limit */
	struct tls_options tls;    /* for tls:// and `receive --tls` */
	struct ssh_options ssh;    /* for ssh:// */
	bool insecure;             /* plain TCP to and from other machines is wanted */
	const char *identity_comm; /* source: name of the root, for the other side's messages */
	int pid;                   /* source: its pid */
	bool dry_run;              /* source */
	uint64_t features;         /* enum migrate_feature that this side can use */
	int connect_timeout_ms;    /* 0 = 10 s */
	int cancel_fd;             /* streams are cancelled by it; -1 = none */
};

struct session {
	enum migrate_side side;
	struct protocol protocol; /* on `control` */
	struct stream *control;
	struct stream *data[MIGRATE_MAX_CONNECTIONS]; /* role CONNECTION_PAGES, by index */
	size_t data_count;
	uint8_t id[SESSION_ID_BYTES];
	uint8_t secret[SESSION_SECRET_BYTES];
	char join_id[40];  /* hexadecimal id, for `criu receive --join` */
	uint64_t features; /* that both sides have */
	uint32_t codecs;   /* bits 1 << enum frame_codec that both have */
	unsigned connections;
	bool dry_run, resume;
	char peer_host[65];
	int peer_pid;       /* destination: root of the tree over there */
	char peer_comm[32]; /* destination: its name */
	/* private */
	const struct wire_options *options;
	struct endpoint endpoint;          /* source: where further connections go */
	const struct tls_credentials *tls; /* NULL = no TLS */
	struct tls_credentials *owned_tls; /* source: loaded here */
	int door_fd;                       /* destination: further connections come from here (door.h) */
	bool door_is_open;
	uint32_t next_index; /* source: of the next connection that is not for pages */
};

/* ---- source ---- */

/*
 * Connects, shakes hands, exchanges HELLO, and opens the connections for pages. On return the protocol is in state
 * PREFLIGHT. @options is kept. Returns 0 or a failure; session_close() is needed in both cases.
 */
int session_connect(struct session *session, const struct endpoint *endpoint, const struct wire_options *options,
		    struct failure *failure);
/*
 * Connects again to a session whose link broke: @id and @secret are those of the old one. On return the state is
 * RESUMING, and there are no connections for pages; session_open_data() makes them once they are needed.
 * session_ask_status() is what comes next. Returns 0 or a failure; session_close() is needed in both cases.
 */
int session_reconnect(struct session *session, const struct endpoint *endpoint, const struct wire_options *options,
		      const uint8_t id[SESSION_ID_BYTES], const uint8_t secret[SESSION_SECRET_BYTES],
		      struct failure *failure);
/* What the destination says of the tree besides its state. */
struct session_answer {
	bool missing; /* post-copy: memory is still wanted */
	bool ended;   /* it ran there, and has ended by itself; */
	int ended_status;
};

/*
 * RESUMING: tells the destination in which state this side is, and learns what the destination has. The protocol goes
 * to that state: READY (COMMIT or ABORT may be sent), RUNNING, DONE or ABORTED. Returns 0 or a failure.
 */
int session_ask_status(struct session *session, enum migrate_state own_state, struct failure *failure,
		       struct session_answer *ret_answer);
/* Opens the session->connections connections for pages (session_connect() has done it). Returns 0 or a failure. */
int session_open_data(struct session *session, struct failure *failure);
/* One more connection of any role but pages. The caller closes the stream. Returns 0 or a failure. */
int session_open(struct session *session, enum connection_role role, struct failure *failure,
		 struct stream **ret_stream);

/* ---- destination ---- */

/* A first connection as the listener gives it (listener.h): nothing was read from it but the preamble. */
struct session_entry {
	struct stream *stream;
	const struct tls_credentials *tls; /* NULL = none */
	uint8_t id[SESSION_ID_BYTES];
};

/*
 * Shakes hands, reads HELLO, answers it, and takes in the connections for pages (none in a dry run). On return the
 * protocol is in state PREFLIGHT. Takes over the stream of @entry in all cases.
 * A source may also come back to a session of which only the journal is left (post-copy): then session->resume is set,
 * the state is RESUMING, and SESSION_STATUS is what comes next.
 * Returns 0 or a failure; session_close() is needed in both cases.
 */
int session_accept(struct session *session, struct session_entry *entry, const struct wire_options *options,
		   struct failure *failure);
/*
 * Takes one further connection, checks that it belongs to the session, and says which it is. One that does not, or a
 * source that comes back because it saw the link break first, is closed, and *ret_stream is NULL: the caller looks what
 * has happened to its other connections. The caller owns *ret_stream.
 * @timeout_ms  -1 = as long as it takes
 * Returns 0 or a failure ("session-join-timeout").
 */
int session_accept_connection(struct session *session, int timeout_ms, struct failure *failure,
			      enum connection_role *ret_role, uint32_t *ret_index, struct stream **ret_stream);
/* Waits for the connections for pages (of a session whose link was lost). Returns 0 or a failure. */
int session_accept_data(struct session *session, struct failure *failure);
/*
 * After a broken link: waits for the source to come back on the door (poll session->door_fd to do something else
 * meanwhile). Replaces control; connections for pages are closed; the state is RESUMING and RESUME_SESSION has been
 * checked and left to the caller to answer with SESSION_STATUS.
 * Returns 0 or a failure.
 */
int session_await_return(struct session *session, int timeout_ms, struct failure *failure,
			 enum migrate_state *ret_peer_state);

/* Closes everything. A session of zeros is fine. */
void session_close(struct session *session);
