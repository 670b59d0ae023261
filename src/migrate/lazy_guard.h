/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guard of lazy memory: a process that does nothing but hold the userfaultfds of all spaces, so that tasks wait,
 * and do not run on zeros, when the daemon that brings their memory is killed. A new daemon finds the guard by its
 * socket in the work directory and gets everything back.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

struct lazy_held {
	uint32_t number; /* of the daemon that added it */
	int userfault_fd, state_fd;
};

/*
 * Forks a guard that holds nothing, in place of one that has died or that there never was. Returns a socket in *ret_fd
 * and 0, or a failure.
 */
int lazy_guard_start(int work_dirfd, struct failure *failure, int *ret_fd);
/*
 * Connects to the guard of this work directory, or forks a new one. What an old one holds is given to @take (owner of
 * the descriptors from then on). Returns a socket in *ret_fd and 0, or a failure.
 */
int lazy_guard_attach(int work_dirfd, struct failure *failure,
		      void (*take)(void *context, const struct lazy_held *held), void *context, int *ret_fd);
/* Gives copies to the guard, and returns when it has them. 0 or -errno (-ENODATA: the guard has died). */
int lazy_guard_add(int guard_fd, const struct lazy_held *held);
/* The guard lets go of this one. Returns 0 or -errno. */
int lazy_guard_drop(int guard_fd, uint32_t number);
/* Whether the address space that the userfaultfd is of has ended. */
bool lazy_space_has_ended(int userfault_fd);
/* Receives one packet with at most @count descriptors; those that did not come are -1. Returns its bytes, 0 at the end
 * of the connection, or -errno. */
ssize_t lazy_receive(int fd, void *packet, size_t size, int *ret_fds, size_t count);
/* A listening SOCK_SEQPACKET socket with this name in the directory, in place of an old one. -errno on error. */
int lazy_listen(int dirfd, const char *name);
/* Takes a connection if the other side is root or our own user. Returns it or -errno. */
int lazy_accept(int listen_fd);
