/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `criu receive`: where connections come from. A process that listens reads the preamble of each connection, forks
 * one process for each session and hands further connections to the process whose session they name. With --stdio the
 * one session is on the standard input and output, and further connections come from `criu receive --join ID`.
 */
#pragma once

#include <stdbool.h>

#include "base/fail.h"
#include "migrate/session.h"

struct listener_options {
	const char *listen; /* HOST:PORT; NULL = 127.0.0.1:7777; ignored if systemd passed sockets */
	bool once;          /* end after one session, with its exit status */
	bool stdio;         /* --stdio */
	bool returns;       /* with --stdio: the source of a session whose process has ended comes back */
	bool secure;        /* what comes in by TCP is TLS, with wire->tls */
	const struct wire_options *wire;
	/*
	 * Serves one session, in a process of its own (with --once too, so that connections go on being handed over;
	 * with --stdio in this one). @entry is to be given to session_accept(). Returns the exit status.
	 */
	int (*serve)(void *context, struct session_entry *entry);
	/* Called once when connections can come: @address is the one that is listened on, with its real port. */
	void (*listening)(void *context, const char *address);
	void *context;
	int stop_fd; /* readable = end (no new sessions; running ones go on); -1 = none */
};

/*
 * Listens and serves until --once is over or stop_fd is readable.
 * Refuses to listen on other than loopback addresses without TLS, unless wire->insecure.
 * @ret_status  with --once or --stdio: what `serve` returned; else 0
 * Returns 0 or a failure.
 */
int listener_run(const struct listener_options *options, struct failure *failure, int *ret_status);

/*
 * `criu receive --join ID`: gives standard input and output to the process that serves session @id and waits until it
 * has closed them. Returns 0 or a failure; -ECONNREFUSED: there is no such process (any more).
 */
int listener_join(const char *id, struct failure *failure);
