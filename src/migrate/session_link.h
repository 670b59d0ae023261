/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of a session agree on; private to session.c and session_accept.c. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "migrate/frames.h"

#define SESSION_JOIN_LABEL "criu join"
#define SESSION_RESUME_LABEL "criu resume"
#define SESSION_CODECS ((1u << FRAME_CODEC_COUNT) - 1)

/* Of each message while a connection is made. */
enum {
	SESSION_SETUP_TIMEOUT_MS = 15000,
	SESSION_JOIN_TIMEOUT_MS = 60000, /* a login through ssh may take long */
};

/* Addresses of this machine itself; unix sockets are. */
bool is_loopback_address(const struct sockaddr *address);
/* The name of this machine. */
void session_host_name(char *name, size_t size);
