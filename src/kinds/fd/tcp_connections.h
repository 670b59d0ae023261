/* SPDX-License-Identifier: Apache-2.0 */
/* All TCP connections of one dump or restore: which have both ends in the tree, the network lock, the order. */
#pragma once

#include "kinds/fd/fd_kind.h"
#include "kinds/fd/network_lock.h"
#include "kinds/fd/tcp_stream.h"

/* ---- dump ---- */
struct tcp_dump; /* every connected socket of the tree */

/* Notes a connected socket; @state is the kind's own pointer (NULL at first). @entry is completed later. */
void tcp_dump_add(struct dump *dump, struct tcp_dump **state, const struct target_fd *target, InetSkEntry *entry,
		  const struct connection *connection);
/* Locks the connections with peers outside, reads all of them, writes their images. Returns 0 or a failure. */
int tcp_dump_finish(struct dump *dump, struct tcp_dump *state);
/* The end of a dump, successful or not: what becomes of the locks; frees *state. */
void tcp_dump_release(struct dump *dump, struct tcp_dump **state, bool tree_is_gone);

/* ---- restore ---- */
struct tcp_restore; /* the lock of this restore */

/* One internet socket to make again. */
struct inet_restore_file {
	struct connection connection;
	bool is_connection;        /* a TCP socket with both ends; else the others are not used */
	bool inside;               /* the other end is in the images too */
	struct tcp_stream *stream; /* between open and finish; NULL if the connection came back closed */
};

/* In criu itself: finds the pairs. Returns 0 or a failure. */
int tcp_restore_prepare(struct restore *restore, const struct fd_kind *kind, struct tcp_restore **state);
/* In criu itself: keeps packets away until every socket exists. Without a lock the restore goes on, with a warning. */
void tcp_restore_lock(struct restore *restore, struct tcp_restore *state);
/* When every socket exists: lets packets pass, also those that the dump locked out. */
void tcp_restore_release(struct restore *restore, struct tcp_restore **state);
