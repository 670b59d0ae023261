/* SPDX-License-Identifier: Apache-2.0 */
/* Data that waits in the receive queue of a unix socket: sk-queues.img. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* ---- dump ---- */

/* The image while it is written; made by the first packet. Starts zeroed. */
struct socket_queue_writer {
	struct image *image;
};

/* Is anything in the queue of @fd (or a connection, if it listens)? */
bool socket_queue_is_filled(int fd);
/*
 * Copies the queue of the socket @fd, which is @file, without taking anything out. Descriptors in flight are given to
 * their kinds. Returns 0 or a failure (no object: the caller names the socket).
 */
int socket_queue_dump(struct dump *dump, struct socket_queue_writer *writer, struct dump_file *file, int fd);
/* Completes the image, and removes one of an earlier dump if there is nothing to write. Returns 0 or a failure. */
int socket_queue_writer_close(struct dump *dump, struct socket_queue_writer *writer);

/* ---- restore ---- */

struct socket_queue_packet {
	struct socket_queue_packet *next;
	const void *data;
	size_t length_bytes;
	const uint32_t *files; /* in flight: ids of files.img */
	size_t file_count;
	const void *sender; /* sun_path of the sender; NULL = unknown or unnamed */
	size_t sender_length;
	bool has_credentials;
	uint32_t pid, uid, gid;
};

struct socket_queue {
	uint32_t id; /* of the receiving socket */
	struct socket_queue_packet *first, *last;
};

struct socket_queues; /* all queues of the images */

/* Reads sk-queues.img, if there is one, into restore->arena. Returns 0 or a failure. */
int socket_queues_read(struct restore *restore, struct socket_queues **ret_queues);
/* The queue of the socket with this id, or NULL when it is empty. */
const struct socket_queue *socket_queues_find(struct socket_queues *queues, uint32_t id);
struct sockaddr_un;

/*
 * Sends @packet on @fd: to @address, or to its peer when that is NULL. @fd's send buffer must have room
 * (socket_queue_make_room). In the task that owns one of the ends. Returns 0 or a failure.
 */
int socket_queue_send(struct restore *restore, struct socket_queues *queues, const struct socket_queue_packet *packet,
		      int fd, const struct sockaddr_un *address, size_t address_length);
/* Sends the whole queue. Buffer size and SO_PASSCRED of @fd are the same afterwards. Returns 0 or a failure. */
int socket_queue_fill(struct restore *restore, struct socket_queues *queues, const struct socket_queue *queue, int fd);
/* The send buffer of a socket that lends itself to fill a queue. */
struct socket_queue_room {
	int fd, size_bytes, lock;
	unsigned credentials;
};
/* Lets @fd send any amount without waiting for the reader. */
struct socket_queue_room socket_queue_make_room(int fd);
/* Gives @fd its own buffer size and SO_PASSCRED back. */
void socket_queue_end_room(const struct socket_queue_room *room);
