/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that all processes of a restore share: barriers, opened files, the one failure.
 *
 * It exists from before the first fork until each task leaves criu's address space. Whoever fails writes the failure
 * and raises `aborted`; everybody who waits sees it and ends.
 */
#pragma once

#include <stdatomic.h>

#include "model/restore.h"

enum restore_barrier {
	BARRIER_STARTED,   /* criu arrives: a root that was there before criu may go on (tree_become) */
	BARRIER_FORKED,    /* every process exists, in its session */
	BARRIER_GROUPS,    /* leaders of process groups exist */
	BARRIER_JOINED,    /* everybody is in its group */
	BARRIER_OPENED,    /* every descriptor of the tree is in its place */
	BARRIER_CONNECTED, /* connect ran everywhere */
	BARRIER_FINISHED,  /* finish ran everywhere, parked descriptors may go */
	BARRIER_COUNT,
};

enum shared_slot_kind { SHARED_FILE, SHARED_OFFER, SHARED_SLOT_KINDS };

struct shared_slot {
	_Atomic uint32_t ready;
	_Atomic uint32_t opener; /* of a file without owner: the process that opens it; 0 = nobody yet */
	pid_t pid;
	int number;
};

struct restore_shared {
	size_t bytes;
	pid_t criu; /* whoever waits looks from time to time whether it still lives */
	_Atomic uint32_t aborted;
	_Atomic uint32_t failure_taken;
	struct failure failure;
	_Atomic uint32_t lock;
	struct {
		_Atomic uint32_t arrived;
		_Atomic uint32_t open; /* what waiters sleep on: it changes once, not with everyone who arrives */
		uint32_t expected;     /* 0 = this tree does not need it, and nobody waits */
	} barriers[BARRIER_COUNT];
	_Atomic uint32_t *born;                       /* by index of the task: 1 = the process exists and is ours */
	_Atomic int32_t *notify_fd;                   /* by index of the task: its number of the socket to criu */
	struct shared_slot *slots[SHARED_SLOT_KINDS]; /* by restore_file.slot */
};

/* Returns 0 or a failure. The live tasks take part in all barriers, dead ones up to BARRIER_JOINED. */
int shared_create(struct restore *restore);
void shared_free(struct restore_shared *shared);
/* Records the failure of this process for all and raises `aborted`. */
void shared_abort(struct restore *restore);
/* Arrives at a barrier and waits for the others. Returns 0, or -ECANCELED when somebody failed. */
int shared_wait(struct restore *restore, enum restore_barrier barrier);
/* Waits without taking part. In criu itself: @alive is asked from time to time and may end the wait; NULL in others. */
int shared_watch(struct restore *restore, enum restore_barrier barrier, int (*alive)(struct restore *restore));
/* Takes it on this process to open a file without owner. Returns 0, or the pid of the process that has done so. */
pid_t shared_claim(struct restore *restore, uint32_t slot);
/* False if nothing in this tree has to wait there. */
bool shared_is_needed(const struct restore *restore, enum restore_barrier barrier);
/* Was the file published already? */
bool shared_is_published(const struct restore *restore, enum shared_slot_kind kind, uint32_t slot);
void shared_publish(struct restore *restore, enum shared_slot_kind kind, uint32_t slot, int number);
/* Returns 0 or -ECANCELED. */
int shared_await(struct restore *restore, enum shared_slot_kind kind, uint32_t slot, pid_t *ret_pid, int *ret_number);
