/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of one TCP connection: both queues, sequence numbers, what was negotiated (TCP_REPAIR). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/fail.h"
#include "kinds/fd/network_lock.h"

#include "tcp-stream.pb-c.h"

/* States of a TCP socket as the kernel numbers them (tcp_info.tcpi_state, inet_sk_entry.state). */
enum tcp_state {
	TCP_STATE_ESTABLISHED = 1,
	TCP_STATE_SYN_SENT,
	TCP_STATE_SYN_RECEIVED,
	TCP_STATE_FIN_WAIT1,
	TCP_STATE_FIN_WAIT2,
	TCP_STATE_TIME_WAIT,
	TCP_STATE_CLOSE,
	TCP_STATE_CLOSE_WAIT,
	TCP_STATE_LAST_ACK,
	TCP_STATE_LISTEN,
	TCP_STATE_CLOSING,
};

struct tcp_stream {
	enum tcp_state state;
	TcpStreamEntry entry;
	uint8_t *in;     /* entry.inq_len bytes that the program has not read */
	uint8_t *out;    /* entry.outq_len bytes that the peer has not acknowledged; the last entry.unsq_len were never
			    sent */
	uint32_t queued; /* what the kernel called the length of the send queue when it was read */
	/* Counters of the kernel when the queues were read: if they differ later, the copy is stale. */
	uint64_t bytes_received, bytes_acked;
};

/* Is the socket one end of a connection with queues and sequence numbers? */
bool tcp_state_is_connected(enum tcp_state state);
/* Did the peer, or this end, send its last byte? */
bool tcp_state_has_peer_fin(enum tcp_state state);
bool tcp_state_has_own_fin(enum tcp_state state);

/* The state of a TCP socket. Returns 0 or -errno. */
int tcp_state_read(int fd, enum tcp_state *ret_state);

/*
 * Switches repair mode on: the socket sends nothing by itself and closes silently. The kernel forgets SO_REUSEADDR
 * then; *ret_reuse is what tcp_repair_end() gives it back. Returns 0 or -errno.
 */
int tcp_repair_begin(int fd, int *ret_reuse);
/* Switches repair mode off without a packet. Returns 0 or -errno. */
int tcp_repair_end(int fd, int reuse);

/* An empty stream; tcp_stream_free() ends it. */
struct tcp_stream *tcp_stream_new(void);
void tcp_stream_free(struct tcp_stream *stream);

/*
 * ---- dump ----
 * Where a peer outside the tree could move the connection on, it is locked before. Where both ends are in the frozen
 * tree, the sending sides of both must be read before the receiving sides: then no byte that one end holds for
 * acknowledged can be missing at the other.
 * Both leave the socket as it was. Return 0 or a failure without an object.
 */
int tcp_stream_read_send(struct failure *failure, int fd, struct tcp_stream *stream);
int tcp_stream_read_receive(struct failure *failure, int fd, struct tcp_stream *stream);

/*
 * Both ends of a connection are read one after the other, and the kernel goes on to send meanwhile (a paced queue, a
 * timer): what @receiver, read later, has got was sent by @sender, whatever that said of itself.
 */
void tcp_stream_count_sent(struct tcp_stream *sender, const struct tcp_stream *receiver);
/* The unread bytes of a connection that has ended; nothing else is left of it. Returns 0 or a failure. */
int tcp_stream_read_ended(struct failure *failure, int fd, struct tcp_stream *stream);
/* Has the connection moved on since it was read? */
bool tcp_stream_is_stale(int fd, const struct tcp_stream *stream);
int tcp_stream_write(int images_dirfd, struct failure *failure, uint32_t inode, const struct tcp_stream *stream);

/* ---- restore ---- */
/* Reads and checks the image of a connection. Returns 0 or a failure. The caller frees it by tcp_stream_free(). */
int tcp_stream_load(int images_dirfd, struct failure *failure, uint32_t inode, enum tcp_state state,
		    struct tcp_stream **ret_stream);
/*
 * Makes a new socket, already in repair mode and bound, the given end: sequence numbers and addresses, without a
 * packet. Returns 0, or -errno without a recorded failure: -EADDRNOTAVAIL = the connection exists on this host,
 * -ENETUNREACH and the like = no way to the peer.
 */
int tcp_stream_attach(int fd, const struct tcp_stream *stream, const void *remote, size_t remote_size);
/* Fills an attached socket, still in repair mode. @connection: the same ends as the socket's. Returns 0 or a failure.
 */
int tcp_stream_fill(struct failure *failure, int fd, const struct tcp_stream *stream,
		    const struct connection *connection);
/* When the other end may exist: leaves repair mode, hands over what was never sent. Returns 0 or a failure. */
int tcp_stream_start(struct failure *failure, int fd, const struct tcp_stream *stream);
/*
 * Makes a new socket one whose connection has ended, with the unread bytes of @stream: both sides have said their
 * last byte. Returns 0 or a failure.
 */
int tcp_stream_restore_ended(struct failure *failure, int fd, int family, const struct tcp_stream *stream);
