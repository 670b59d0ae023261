/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is found out before a migration touches anything: the source tells what its tree needs, the destination says
 * what of it is missing, and all of that is listed at once, each line with a name that --skip-check takes.
 *
 * Names of checks: blockers (of the dump), cpu, kernel, pids, files, ports, addresses, mounts, memory.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

struct dump_options;
struct message;
struct protocol;

enum preflight_verdict {
	PREFLIGHT_PASSED,
	PREFLIGHT_SKIPPED, /* it failed, and the user said --skip-check */
	PREFLIGHT_FAILED,
	PREFLIGHT_VERDICT_COUNT,
};

/* What a file is to the tree; bits of migrate_file.use. */
enum preflight_file_use {
	PREFLIGHT_FILE_OPEN = 1 << 0,
	PREFLIGHT_FILE_MAPPED = 1 << 1,
	PREFLIGHT_FILE_DIRECTORY = 1 << 2, /* working directory or root */
	PREFLIGHT_FILE_WRITTEN = 1 << 3,   /* open for writing */
};

/* One line of the list. */
struct preflight_check {
	const char *name; /* for --skip-check */
	enum preflight_verdict verdict;
	struct failure failure; /* of PASSED: object and cause say what was looked at */
};

struct preflight_options {
	const struct dump_options *dump; /* the tree, and what is allowed in it */
	const char *const *skip;         /* --skip-check; @skip_count of them */
	size_t skip_count;
	bool send_files;
	const char *const *moved_addresses; /* ADDRESS/PREFIX@INTERFACE of --address; @moved_address_count */
	size_t moved_address_count;
	bool new_pid_namespace;
	/* Called for each line, the source's first; may be NULL. */
	void (*check)(void *context, const struct preflight_check *check);
	/* Called while files are sent; may be NULL. */
	void (*file)(void *context, const char *path, uint64_t sent_bytes, uint64_t size);
	void *context;
};

/*
 * Source, protocol in state PREFLIGHT: looks at the tree (which runs on), asks the destination, sends files that are
 * wanted, and asks again. Reports every check. The tree's own blockers are told before the destination is asked.
 * @ret_failed  number of checks with verdict FAILED: the migration must not start unless it is 0
 * Returns 0 or a failure (of the link, or the tree is gone).
 */
int preflight_run(struct protocol *protocol, const struct preflight_options *options, struct failure *failure,
		  size_t *ret_failed);

struct preflight_serve_options {
	uint64_t preset_bytes; /* memory that is not to be counted as free; 0 = none */
	bool accept_files;     /* files of the source may be written here */
	const pid_t *own_pids; /* that do not stand in the way (of this criu); @own_pid_count */
	size_t own_pid_count;
	void (*check)(void *context, const struct preflight_check *check); /* may be NULL */
	void *context;
};

/*
 * Destination, protocol in state PREFLIGHT: answers requests and takes files in, until another message comes (TREE,
 * ABORT), which is given to the caller.
 * Returns 0 or a failure; a source that ends the link after --dry-run is "link-ended".
 */
int preflight_serve(struct protocol *protocol, const struct preflight_serve_options *options, struct failure *failure,
		    struct message *ret_next);
