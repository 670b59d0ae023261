/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of a task's descriptors and what every kind wants to know of them, by another core ahead of the kinds. */
#pragma once

#include "model/dump.h"

/* What was seen of one descriptor. */
struct look {
	int fd;    /* our copy, or -1; whoever gets the look owns it */
	int error; /* 0, or positive errno of what went wrong: @code, @cause */
	const char *code, *cause;
	struct stat stat;
	int flags;                        /* F_GETFL */
	uint64_t position;                /* 0 where it cannot seek */
	const struct file_objects *known; /* what the kernel has beside it; NULL = not known */
	char link[4096];                  /* what /proc/PID/fd/N says */
};

/* Looks at a descriptor of ours. @pipe_device: st_dev of every pipe(2), 0 = not known. */
void look_at(dev_t pipe_device, int fd, struct look *look);

struct look_ahead;

/*
 * Begins to look at @count descriptors of the task; @slots stays the caller's. Never fails: without a second thread the
 * caller's does the work.
 */
struct look_ahead *look_ahead_start(const struct dump_task *task, struct dump_fd *const *slots, size_t count,
				    dev_t pipe_device);
/* The next descriptor's, in the order of @slots; good until the next call. */
struct look *look_ahead_next(struct look_ahead *ahead);
/* Ends the other thread and closes the copies that nobody took. */
void look_ahead_end(struct look_ahead *ahead);
