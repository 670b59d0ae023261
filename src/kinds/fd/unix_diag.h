/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tells about the unix sockets of a network namespace (NETLINK_SOCK_DIAG). */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

#include "base/arena.h"
#include "base/fail.h"

struct unix_diag_socket {
	uint32_t inode;
	uint8_t type, state;                /* SOCK_*, TCP_* */
	uint8_t shutdown;                   /* bit 0: does not receive, bit 1: does not send */
	bool has_peer;                      /* is connected; peer 0 then is one that is closed or not accepted yet */
	uint32_t peer;                      /* inode */
	uint32_t receive_queue, send_queue; /* bytes; of a listener connections and backlog */
	const char *name;                   /* sun_path, not terminated; NULL = unnamed */
	size_t name_length;
	const uint32_t *waiting; /* of a listener: inodes of clients to accept, 0 = closed already */
	size_t waiting_count;
	UT_hash_handle hh;
};

/* All that was read. Starts zeroed; memory belongs to the arena. */
struct unix_diag {
	struct unix_diag_socket *sockets;
};

/*
 * Adds the unix sockets of the network namespace that the socket @fd belongs to. Returns 0 or a failure.
 */
int unix_diag_read(struct unix_diag *diag, struct arena *arena, struct failure *failure, int fd);
/* The socket with this inode, or NULL. */
struct unix_diag_socket *unix_diag_find(const struct unix_diag *diag, uint32_t inode);
/* "pid 1203 (name)" of a process that has the socket open, looked up in /proc; "nobody" if there is none. */
char *unix_diag_owner(uint32_t inode, char *buffer, size_t size);
