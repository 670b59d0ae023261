/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a dump, a restore or a command on a stopped tree is asked to do. Filled by src/cmd from command line, config
 * files or RPC; const from then on.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

struct action_scripts;

/* Reported while pages are moved; totals are 0 until they are known. */
struct progress {
	const char *stage; /* "freeze", "memory", … */
	uint64_t done_bytes, total_bytes;
};

enum network_lock_method {
	NETWORK_LOCK_NFTABLES = 0,
	NETWORK_LOCK_SKIP,
};

/* What becomes of the tree after a successful dump. */
enum dump_end_state {
	DUMP_END_KILL = 0,
	DUMP_END_RUNNING,
	DUMP_END_STOPPED,
};

struct dump_options {
	pid_t pid;        /* root of the tree */
	int images_dirfd; /* opened, writable; -1 for explain */
	int work_dirfd;   /* stats and logs */
	enum dump_end_state end_state;
	bool explain;   /* change nothing, report every blocker */
	bool shell_job; /* the session leader or terminal may be outside the tree */
	bool tcp_established, tcp_close, tcp_skip_in_flight;
	bool file_locks, link_remap, external_unix_sockets;
	bool format_plain; /* write only what CRIU's format knows */
	uint64_t ghost_limit_bytes;
	unsigned timeout_seconds; /* for the freeze; 0 = wait for ever */
	enum network_lock_method network_lock;
	const struct action_scripts *scripts; /* may be NULL */
	const char *die_at; /* tests: the stage at which criu kills itself with SIGKILL; NULL = never */
	void (*blocker)(void *context, const struct failure *blocker);    /* explain: called for each */
	void (*progress)(void *context, const struct progress *progress); /* may be NULL */
	void *context;
};

struct restore_options {
	pid_t pid; /* must be the root of the images; 0 = not asked */
	int images_dirfd;
	int work_dirfd;
	bool detached; /* do not wait for the tree */
	bool sibling;  /* the root becomes a child of criu's parent */
	bool shell_job;
	bool tcp_established, tcp_close;
	bool show_plan;    /* print what would be done and stop */
	bool exec_command; /* after the restore criu executes command[0] */
	char *const *command;
	const char *pidfile; /* relative to work_dirfd; may be NULL */
	bool leave_stopped;
	const struct action_scripts *scripts;
	void (*progress)(void *context, const struct progress *progress);
	void *context;
};

/* A tree that a dump left stopped (`criu kill`, `criu resume`). */
struct stopped_options {
	pid_t pid;                /* root of the tree */
	int images_dirfd;         /* the dump it must be the tree of; -1 = not given */
	unsigned timeout_seconds; /* for the tasks to end or run again; 0 = wait for ever */
};
