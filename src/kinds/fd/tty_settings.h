/* SPDX-License-Identifier: Apache-2.0 */
/* What can be set on a terminal: line discipline settings, their locks, window size; and what lies in its queues. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"

#include "tty.pb-c.h"

/*
 * Fills @info's termios, termios_locked and winsize from a terminal, with memory of the arena. A terminal that was
 * hung up has none: nothing is filled. Returns 0 or -errno.
 */
int tty_settings_read(struct arena *arena, int fd, TtyInfoEntry *info);
/* Sets what @info has. Returns 0 or -errno. */
int tty_settings_apply(int fd, const TtyInfoEntry *info);

/*
 * The bytes that wait in a pty: typed and not read by the program, written by the program and not read by the master.
 * All functions need a master and a descriptor of ours for the slave that does not block.
 */
struct tty_queues {
	char *typed, *written; /* malloc'ed; NULL = empty */
	size_t typed_bytes, written_bytes;
};

/*
 * Takes everything out of both queues and puts it back. The kernel has no way to only look; the tree is frozen.
 * @packet_mode  the master is in packet mode
 * Returns 0 or -errno; the caller frees the members of *ret_queues.
 */
int tty_queues_read(int master, int slave, bool packet_mode, struct tty_queues *ret_queues);
/* Puts bytes into both queues without anything happening to them on the way. Returns 0 or -errno. */
int tty_queues_fill(int master, int slave, const struct tty_queues *queues);
