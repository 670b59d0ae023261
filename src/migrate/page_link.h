/* SPDX-License-Identifier: Apache-2.0 */
/* Connections of page servers: TCP with or without TLS, or a descriptor that the caller of criu has connected. */
#pragma once

#include <stdint.h>

#include "base/fail.h"

struct stream;
struct tls_credentials;

struct page_link_options {
	const char *address;                       /* NULL: loopback for a client, all addresses for a server */
	uint16_t port;                             /* 0: a server takes any; a client needs one */
	int socket_fd;                             /* --ps-socket: a connected socket; -1 = none */
	const struct tls_credentials *credentials; /* TLS, with these, which live as long as the link; NULL = none */
};

/* Connects to the server. Returns 0 or a failure. */
int page_link_connect(const struct page_link_options *options, struct failure *failure, struct stream **ret_stream);
/*
 * Listens. Without TLS on other than loopback addresses a warning is logged.
 * @ret_fd  -1 if options->socket_fd is the connection; @ret_port  the port that is listened on
 * Returns 0 or a failure.
 */
int page_link_listen(const struct page_link_options *options, struct failure *failure, int *ret_fd, uint16_t *ret_port);
/* Waits for a connection at @listen_fd, or takes options->socket_fd. Returns 0 or a failure. */
int page_link_accept(const struct page_link_options *options, int listen_fd, struct failure *failure,
		     struct stream **ret_stream);
