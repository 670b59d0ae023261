/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network lock: while a TCP connection is away, nothing of it may reach this host's stack, which would answer
 * with a reset, and nothing of a stopped tree's socket may reach the peer.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

/* The two ends of one connection. Addresses in network byte order, ports in the host's. */
struct connection {
	int family; /* AF_INET: one word of each address, AF_INET6: four; a mapped IPv4 address is AF_INET */
	uint16_t local_port, remote_port;
	uint32_t local[4], remote[4];
};

/* Whose lock it is; the table is named "criu-<root_pid>-<first 8 characters of run_id>". */
struct network_lock_owner {
	pid_t root_pid;
	const char *run_id;
	uint64_t start_time; /* of the root task, clock ticks since boot; 0 = not known (a restore) */
	bool restoring;      /* a restore's own lock lies beside that of the dump, which outlives a failed restore */
};

/* The mark (SO_MARK) of criu's own packets, which pass a lock. */
#define NETWORK_LOCK_MARK 0xc114

struct network_lock; /* the lock of one network namespace */

/*
 * Locks connections in one transaction. The lock belongs to this process: if it dies, the kernel removes it.
 * A lock of the same name that an earlier criu left is replaced without a gap.
 *
 * @netns_fd  the network namespace, or -1 for that of this process
 * Returns 0 or a failure. The caller ends *ret_lock by network_lock_keep() or network_lock_drop().
 */
int network_lock_create(struct failure *failure, int netns_fd, const struct network_lock_owner *owner,
			const struct connection *connections, size_t count, struct network_lock **ret_lock);
/*
 * Lets the lock outlive this process, and frees *lock. @timeout_seconds: when the kernel lets the connections go by
 * itself, 0 = never. Returns 0 or a failure (then the lock is as it was).
 */
int network_lock_keep(struct failure *failure, struct network_lock **lock, unsigned int timeout_seconds);
/* Unlocks and frees *lock; nothing happens to NULL. */
void network_lock_drop(struct network_lock **lock);

/* Would network_lock_create() work here? Changes nothing. Returns 0 or a failure. */
int network_lock_probe(struct failure *failure);

/* @netns_fd of the following: the network namespace, or -1 for that of this process. */

/*
 * Takes connections out of every kept lock, whichever dump made it: they live here again. Best effort, a lock that
 * holds nothing else is removed.
 */
void network_lock_forget(int netns_fd, const struct connection *connections, size_t count);
/* Removes the kept locks of every dump of the tree with this root. Returns 0, also if there is none, or a failure. */
int network_lock_remove_for(struct failure *failure, int netns_fd, pid_t root_pid);
/*
 * Calls @found with the name of each lock of the network namespace. Tables whose connections have all gone by
 * themselves (network_lock_keep()) are removed, and not told. Returns 0 or -errno.
 */
int network_lock_list(int netns_fd, void (*found)(void *context, const char *name), void *context);
/* "criu-41-0a1b2c3d" into @buffer. Returns @buffer. */
char *network_lock_name(const struct network_lock_owner *owner, char *buffer, size_t size);

/* "10.0.0.1:80 to 10.0.0.2:4100" into @buffer, for messages. Returns @buffer. */
char *connection_text(const struct connection *connection, char *buffer, size_t size);
