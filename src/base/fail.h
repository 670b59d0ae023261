/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One failure, told once, where the cause is known.
 *
 * A failure is a line that a user can act on: which object, why, and what to do. The place that knows the cause
 * calls fail(); callers on the way out add where they were with fail_in(). The record has a fixed size and no
 * pointers, so that it can cross a pipe, shared memory or a network peer as it is.
 */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

struct failure {
	int error;        /* positive errno; 0 = no failure recorded */
	char code[40];    /* stable, machine readable: "fd-unix-peer-outside" */
	char object[320]; /* "task 41 (redis-server): fd 7: unix socket \"/run/x.sock\"" */
	char cause[320];  /* "the peer, pid 1203, is outside the tree" */
	char hint[240];   /* "add it with --external unix[18223] or dump it too"; may be empty */
};

/*
 * Records a failure, unless one is recorded already (the first cause wins).
 *
 * @error   errno value, positive or negative; 0 is taken as EINVAL
 * @code    stable short name
 * @object  what failed, without a trailing colon; NULL = only the callers' context will name it
 * @hint    what the user can do, or NULL
 * Returns -errno, so that a caller can write `return fail(...)`.
 */
int fail(struct failure *failure, int error, const char *code, const char *object, const char *hint,
	 const char *cause_format, ...) __attribute__((format(printf, 6, 7)));

/* Like fail(), with ": <strerror>" after the cause. @error is the errno of the failed call. */
int fail_errno(struct failure *failure, int error, const char *code, const char *object, const char *hint,
	       const char *cause_format, ...) __attribute__((format(printf, 6, 7)));

/* Puts "<context>: " before the object of the recorded failure. Returns -errno of it. */
int fail_in(struct failure *failure, const char *context_format, ...) __attribute__((format(printf, 2, 3)));

/* Writes "object: cause; hint" as one line without newline or control characters into @buffer. Returns @buffer. */
char *failure_line(const struct failure *failure, char *buffer, size_t size);

/* Forgets a recorded failure. */
void failure_clear(struct failure *failure);

static inline bool failure_is_set(const struct failure *failure)
{
	return failure->error != 0;
}
