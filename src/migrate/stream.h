/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One stream of bytes to the other side of a migration, whatever carries it: descriptors (TCP, unix, the standard
 * input and output of `criu receive --stdio`), TLS above them (tls.h), or an ssh child (ssh.h).
 *
 * Every call blocks until it is done, the link is lost, the time limit is over or the stream is cancelled. One thread
 * may read while another writes; two readers or two writers need a lock of their own. Descriptors are non-blocking
 * inside, so that a cut link, Ctrl-C and a time limit are noticed while data waits.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/fail.h"

struct stream;

/* What a carrier does. `data` is its own. All but `close` return bytes moved (> 0) or -errno; 0 = the other side ended.
 */
struct stream_operations {
	const char *name; /* "tcp", "tls", "ssh" */
	/* Moves what is there at once; -EAGAIN = nothing, wait for the descriptor. */
	ssize_t (*read)(struct stream *stream, void *buffer, size_t size);
	ssize_t (*writev)(struct stream *stream, const struct iovec *parts, int count);
	/* Bytes that were taken from the descriptor and not given out yet: poll() does not tell of them. NULL = none.
	 */
	size_t (*pending)(struct stream *stream);
	/* Says good-bye (TLS close_notify) without waiting; NULL = nothing to say. */
	void (*goodbye)(struct stream *stream);
	/* One line about why the carrier died (the last line of ssh), or NULL = nothing known. */
	const char *(*death)(struct stream *stream);
	void (*free)(struct stream *stream);
};

/* Read by carriers only; everybody else uses the functions. */
struct stream {
	const struct stream_operations *operations;
	void *data;
	int read_fd, write_fd;  /* owned; equal for sockets */
	int cancel_fd;          /* borrowed; -1 = none */
	int holder_fd;          /* owned: something that is to end with the stream; -1 = none */
	int timeout_ms;         /* of each wait; -1 = none */
	bool is_socket;         /* shutdown(2) works */
	int stop_fd;            /* of pipes: an eventfd that stream_shutdown() makes readable; -1 = a socket */
	bool stopped;           /* of pipes: stream_shutdown() was called */
	uint64_t write_wait_ns; /* that the writing thread waited for the link in all; its own */
	uint64_t written_bytes; /* atomic: read by any thread */
	char peer[160];         /* for failures and the log: "10.0.0.2:7777", "ssh user@host" */
};

/* ---- for carriers ---- */

/* Plain descriptors, which TLS works on. */
extern const struct stream_operations stream_fd_operations;
/* Waits within a call until one of the stream's descriptors is ready. Returns 0, -ETIMEDOUT, -ECANCELED or -errno. */
int stream_wait_readable(struct stream *stream);
int stream_wait_writable(struct stream *stream);

/* ---- making ---- */

/*
 * A stream over descriptors, which it owns from now on (also if they are the same one), even on failure. They become
 * non-blocking and close-on-exec.
 * @peer  names the other side in failures
 * Returns 0 or -errno.
 */
int stream_from_fds(int read_fd, int write_fd, const char *peer, struct stream **ret_stream);
/* Two connected streams, for tests and for processes of one machine. Returns 0 or -errno. */
int stream_pair(struct stream *ret_streams[2]);

/*
 * Connects by TCP, trying every address of the name. Each attempt may take @timeout_ms.
 * Returns 0 or a failure that names host, port and cause.
 */
int stream_connect_tcp(const char *host, uint16_t port, int timeout_ms, struct failure *failure,
		       struct stream **ret_stream);
/*
 * Sets what every TCP connection of a migration has: TCP_NODELAY, keepalive and TCP_USER_TIMEOUT, so that a cut link
 * fails reads and writes after STREAM_LINK_TIMEOUT_MS. Does nothing to other sockets.
 */
void stream_tune_socket(int fd);
enum { STREAM_LINK_TIMEOUT_MS = 15000 };

/* ---- using ---- */

/* Reads or writes exactly @size bytes. Returns 0 or -errno; -ENODATA: the other side ended the stream. */
int stream_read_full(struct stream *stream, void *buffer, size_t size);
int stream_write_full(struct stream *stream, const void *buffer, size_t size);
/* Writes all parts; @parts is changed on the way. Returns 0 or -errno. */
int stream_writev(struct stream *stream, struct iovec *parts, int count);

/*
 * About how many bytes the other side's kernel has taken (SIOCOUTQ; of what goes through a pipe: this side's pipe).
 * Only a change says something: that the link moves. Any thread.
 */
uint64_t stream_delivered(const struct stream *stream);

/* For poll(2): readable or hung up = stream_read_full() will find something, once stream_pending() is 0. */
int stream_fd(const struct stream *stream);
/* Bytes that can be read although poll(2) does not say so. */
size_t stream_pending(struct stream *stream);
/*
 * Waits until something can be read. @timeout_ms: -1 = as long as it takes.
 * Returns 1 (readable or ended), 0 (time over), -ECANCELED or -errno.
 */
int stream_wait(struct stream *stream, int timeout_ms);

/* The longest wait for the other side within one call, -1 = none (the default). Then calls return -ETIMEDOUT. */
void stream_set_timeout(struct stream *stream, int timeout_ms);
/*
 * From now on, calls that would wait return -ECANCELED once @cancel_fd (an eventfd or signalfd, which the caller
 * keeps) is readable; -1 = no more.
 */
void stream_set_cancel(struct stream *stream, int cancel_fd);

/*
 * Ends both directions at once; blocked and later calls of any thread return -ENODATA or -EPIPE. May be called by any
 * thread that knows that the stream is not closed yet.
 */
void stream_shutdown(struct stream *stream);
/*
 * After the last thing that this side has to say: ends its direction and waits a moment for the other side to do the
 * same. Closing while something unread has arrived would make the kernel throw away what was just sent.
 */
void stream_linger(struct stream *stream);
/* Says good-bye, closes, frees; an ssh child is waited for. *stream becomes NULL. NULL is fine. */
void stream_close(struct stream **stream);

/* Closes the descriptors and frees without a word: another process goes on with the stream. *stream becomes NULL. */
void stream_forget(struct stream **stream);

/* The other side, for messages. */
const char *stream_peer(const struct stream *stream);
/*
 * Records what error @error of a stream call means to the user: "link-lost", "link-timeout", "link-ended" or
 * "cancelled", with the peer as object. Returns -errno.
 */
int stream_fail(struct stream *stream, int error, struct failure *failure);
/* Whether a failure says that the link broke, or is not there: another one may hold. */
bool stream_is_lost(const struct failure *failure);

static inline void stream_close_pointer(struct stream **stream)
{
	stream_close(stream);
}
#define _cleanup_stream_ __attribute__((cleanup(stream_close_pointer)))
