/* SPDX-License-Identifier: Apache-2.0 */
/* /proc/PID/task/TID/status of a frozen thread: read once, used by several kinds. */
#pragma once

#include "model/dump.h"

struct thread_status {
	uint32_t uids[4], gids[4]; /* real, effective, saved, file system */
	uint32_t *groups;          /* in the dump's arena */
	size_t group_count;
	uint64_t inheritable, permitted, effective, bounding, ambient; /* capabilities */
	uint64_t pending, pending_shared;                              /* signals; bit 0 is signal 1 */
	unsigned no_new_privs;
	unsigned seccomp_mode;
	unsigned umask;
	size_t fd_slots; /* of its descriptor table, used or not */
	bool shadow_stack;
};

/* The status of @thread, which must be frozen. It lives in the dump's arena. Returns 0 or a failure. */
int thread_status_get(struct dump *dump, struct dump_thread *thread, const struct thread_status **ret_status);
/* Reads it anew (pending signals change while the thread stands). Returns 0 or a failure. */
int thread_status_refresh(struct dump *dump, struct dump_thread *thread, const struct thread_status **ret_status);
