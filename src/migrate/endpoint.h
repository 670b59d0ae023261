/* SPDX-License-Identifier: Apache-2.0 */
/* Where a migration goes, as the user writes it: ssh://user@host:22, tls://host:7777, tcp://[::1]:7777. */
#pragma once

#include <stdint.h>

#include "base/fail.h"

enum endpoint_scheme { ENDPOINT_SSH, ENDPOINT_TLS, ENDPOINT_TCP };

enum { ENDPOINT_DEFAULT_PORT = 7777 };

struct endpoint {
	enum endpoint_scheme scheme;
	char user[64];  /* ssh only; "" = ssh decides */
	char host[256]; /* name or number without brackets */
	uint16_t port;  /* 0 (ssh only) = ssh decides; else ENDPOINT_DEFAULT_PORT if the text has none */
};

/*
 * Reads SCHEME://[USER@]HOST[:PORT]. No part may begin with a dash (ssh would take it as an option) or hold a blank
 * or control character. Returns 0 or a failure.
 */
int endpoint_parse(const char *text, struct endpoint *ret_endpoint, struct failure *failure);
/*
 * Reads HOST:PORT or :PORT of --listen (host "" = all addresses). The scheme is ENDPOINT_TCP. Returns 0 or a failure.
 */
int endpoint_parse_listen(const char *text, struct endpoint *ret_endpoint, struct failure *failure);
/* "tls://[::1]:7777" into @buffer. Returns @buffer. */
char *endpoint_text(const struct endpoint *endpoint, char *buffer, size_t size);
