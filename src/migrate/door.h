/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How further connections find the process that serves their session. Every connection starts with a preamble in clear
 * text that says what it is and names the session. Whoever gets one for a session that runs already (the process that
 * listens, or `criu receive --join`) passes its descriptors to the session's door: an abstract unix socket that is
 * named after the session's public id and gone with its process.
 */
#pragma once

#include <stdint.h>

#include "base/fail.h"
#include "migrate/protocol.h"

enum { PREAMBLE_BYTES = 32 };

enum preamble_kind {
	PREAMBLE_UNREAD = 0, /* the door's: the receiver of the descriptors has to read it */
	PREAMBLE_CONTROL,    /* a new session */
	PREAMBLE_JOIN,       /* one more connection */
	PREAMBLE_RETURN,     /* a new control connection of an old session */
	PREAMBLE_KIND_COUNT,
};

void preamble_encode(enum preamble_kind kind, const uint8_t id[SESSION_ID_BYTES], uint8_t bytes[PREAMBLE_BYTES]);
/* Returns 0 or -EPROTO. */
int preamble_decode(const uint8_t bytes[PREAMBLE_BYTES], enum preamble_kind *ret_kind,
		    uint8_t ret_id[SESSION_ID_BYTES]);

/* The id as 32 hexadecimal digits and its end, and back (returns 0 or -EINVAL). */
void session_id_text(const uint8_t id[SESSION_ID_BYTES], char text[2 * SESSION_ID_BYTES + 1]);
int session_id_parse(const char *text, uint8_t ret_id[SESSION_ID_BYTES]);

/* The listening socket of a session's door. Returns 0 or -errno (-EADDRINUSE: there is one). */
int door_open(const uint8_t id[SESSION_ID_BYTES], int *ret_fd);
/*
 * Takes what has come to the door. @ret_fds: for reading and writing, the caller's; may be the same number.
 * @ret_holder: to be kept open as long as the descriptors are in use: then whoever passed them goes.
 * Returns 0, -EAGAIN if nothing has come, -EPERM if another user knocked, or -errno.
 */
int door_accept(int door_fd, enum preamble_kind *ret_kind, int ret_fds[2], int *ret_holder);
/*
 * Passes descriptors (they stay the caller's too) to the session's process. @ret_holder: its other end ends when the
 * session has closed them.
 * Returns 0, -ECONNREFUSED if there is no such session, or -errno.
 */
int door_pass(const uint8_t id[SESSION_ID_BYTES], enum preamble_kind kind, int read_fd, int write_fd, int *ret_holder);
