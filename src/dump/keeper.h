/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper holds the tracking of a tree's memory between two runs of criu: a process that a dump leaves behind, with
 * the tracker's userfaultfds and the id of the images that belong to them. It is found by the root of the tree, gives
 * the descriptors to the next criu and gets them back after the next dump. It ends when the root ends, when it is told
 * to, and may be killed: then the next dump is a full one.
 */
#pragma once

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include "kinds/mem/track.h"

struct failure;

/* Which tree; made while its root lives. */
struct keeper_key {
	pid_t root;
	struct sockaddr_un address;
	socklen_t address_bytes;
};

/* Returns 0 or a failure. */
int keeper_key(pid_t root, struct failure *failure, struct keeper_key *ret_key);
/*
 * Puts what the keeper has into @tracker, which is empty. From then on the keeper counts its images as outdated.
 * Returns true if there is a keeper. Without one, or if it is not trusted, the tracker stays empty.
 */
bool keeper_take(const struct keeper_key *key, struct memory_tracker *tracker);
/* Leaves a copy of the tracker with the keeper, which is started if there is none. Returns 0 or a failure. */
int keeper_put(const struct keeper_key *key, const struct memory_tracker *tracker, struct failure *failure);
/* Ends the keeper and waits until it has. */
void keeper_end(const struct keeper_key *key);
