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
struct PreflightRequest;
struct FileData;
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

/* All names of checks, NULL at the end. */
extern const char *const preflight_check_names[];

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

/* ---- source ---- */

/* What was found out and sent, for the last round. */
struct preflight;

/*
 * Source, protocol in state PREFLIGHT: looks at the tree (which runs on), asks the destination, sends files that are
 * wanted, and asks again. Reports every check that has failed or was skipped, and one PASSED line for each name else.
 * The tree's own blockers are told before the destination is asked.
 * @options       and what it points to stay the caller's; used during this call only
 * @ret_failed    number of checks with verdict FAILED: the migration must not start unless it is 0
 * @ret_preflight preflight_free() it
 * Returns 0 or a failure (of the link, or the tree is gone).
 */
int preflight_run(struct protocol *protocol, const struct preflight_options *options, struct failure *failure,
		  size_t *ret_failed, struct preflight **ret_preflight);
/*
 * State LAST_ROUND, the tree is frozen: sends again what has changed in files that were sent and that the tree has open
 * for writing. To be called before IMAGES_END. Returns 0 or a failure.
 */
int preflight_send_changed_files(struct preflight *preflight, struct protocol *protocol, struct failure *failure);
void preflight_free(struct preflight **preflight);

/* ---- destination ---- */

struct preflight_server_options {
	const pid_t *own_pids; /* that do not stand in the way (of this criu); @own_pid_count */
	size_t own_pid_count;
	bool refuse_files; /* files of the source may not be written here */
	/* Called for each check that has failed or was skipped; may be NULL. */
	void (*check)(void *context, const struct preflight_check *check);
	void *context;
};

/* What the destination keeps between the messages of a preflight. */
struct preflight_server;

/* @options is copied, what it points to is not. */
struct preflight_server *preflight_server_new(const struct preflight_server_options *options);
/* Files that have not come completely are removed. *server becomes NULL; NULL is fine. */
void preflight_server_free(struct preflight_server **server);
/* Answers PREFLIGHT_REQUEST with PREFLIGHT_ANSWER. Returns 0 or a failure (of the link). */
int preflight_server_answer(struct preflight_server *server, struct protocol *protocol,
			    const struct PreflightRequest *request, struct failure *failure);
/*
 * Takes a FILE_DATA message: only for files that an answer has asked for. Returns 0 or a failure ("file-write",
 * "file-path", "protocol-message" …): the migration has to be aborted then.
 */
int preflight_server_take_file(struct preflight_server *server, const struct FileData *data, struct failure *failure);
