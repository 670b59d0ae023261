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
struct memory_tracker;
struct shmem_tracker;
struct vm_flags_reader;
struct page_sink;

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

/* How CRIU reads the memory of a pre-dump. Here both are the same. */
enum pre_dump_mode { PRE_DUMP_SPLICE = 1, PRE_DUMP_READ = 2 };

struct dump;

/*
 * What a migration or a page server does in the midst of a dump. Each step returns 0 or a failure, which ends the dump
 * and lets the tree run on; NULL = nothing to do.
 */
struct dump_steps {
	/* Whatever could be done before is done: the next thing is to stop the tree. */
	void (*freezing)(void *context);
	/* The pages to write are known, none is written. */
	int (*scanned)(void *context, struct dump *dump);
	/* Everything is written. Unless the tree is to run on, it still stands, held by criu: if criu dies now, it runs
	 * on. */
	int (*written)(void *context, struct dump *dump);
};

struct dump_options {
	pid_t pid;        /* root of the tree */
	int images_dirfd; /* opened, writable; -1 for explain */
	int work_dirfd;   /* stats and logs */
	enum dump_end_state end_state;
	bool lazy_pages; /* pages that may come later stay with the tree: the images only say which */
	bool explain;    /* change nothing, report every blocker */
	bool shell_job;  /* the session leader or terminal may be outside the tree */
	bool tcp_established, tcp_close, tcp_skip_in_flight;
	bool link_remap;
	bool format_plain; /* write only what CRIU's format knows */
	uint64_t ghost_limit_bytes;
	unsigned timeout_seconds; /* for the freeze; 0 = wait for ever */
	enum network_lock_method network_lock;
	const struct action_scripts *scripts; /* may be NULL */
	struct memory_tracker *tracker;       /* kinds/mem/track.h; NULL: memory is dumped in full */
	bool tracking_ends;                   /* no dump with this tracker will follow: nothing is armed again */
	struct shmem_tracker *shared_memory;  /* kinds/mem/shmem_track.h; NULL: shared memory comes in full */
	bool pre_dump;                        /* only memory, while the tree runs; needs a tracker */
	enum pre_dump_mode pre_dump_mode;     /* what the inventory of a pre-dump says */
	bool parent_has_shared_pages;         /* the parent images have an img_version that says so */
	struct vm_flags_reader *vm_flags;     /* kernel/vm_flags.h; NULL: the dump makes one if the tree is large */
	struct page_sink *page_sink;          /* takes all pages (page_sink.h); NULL: files of the images directory */
	const char *die_at; /* tests: the stage at which criu kills itself with SIGKILL; NULL = never */
	void (*blocker)(void *context, const struct failure *blocker);    /* explain: called for each */
	const struct dump_steps *steps;                                   /* may be NULL */
	void (*progress)(void *context, const struct progress *progress); /* may be NULL */
	void *context;
};

/* The pages of one address space or shared memory, each at the offset of its address; holes are zeros. */
struct page_store {
	enum { PAGE_STORE_PROCESS = 1, PAGE_STORE_SHMEM = 2 } space;
	uint64_t id; /* the pid, the id of the shared memory */
	int fd;
};

struct preload; /* restore/preload.h */

struct restore_options {
	pid_t pid; /* must be the root of the images; 0 = not asked */
	int images_dirfd;
	int work_dirfd;
	bool stream;        /* images come from the streamer that listens in images_dirfd (image/image_streamer.h) */
	bool lazy_pages;    /* `criu lazy-pages`, whose socket is in work_dirfd, brings memory later */
	bool detached;      /* do not wait for the tree */
	bool sibling;       /* the root becomes a child of criu's parent */
	bool leave_stopped; /* every task is stopped by SIGSTOP and has not run yet */
	bool shell_job;
	bool tcp_established, tcp_close;
	bool show_plan;    /* print what would be done and stop */
	bool exec_command; /* after the restore criu executes command[0] */
	char *const *command;
	const char *pidfile; /* relative to work_dirfd; may be NULL */
	const struct action_scripts *scripts;
	void (*progress)(void *context, const struct progress *progress);
	/*
	 * A migration: the calling process is to become the root, whose memory it has received (restore/preload.h);
	 * restore_run() returns in a process that it forks. NULL = the caller stays what it is.
	 */
	struct preload *preload;
	/* A migration: where pages lie that are neither in the preload nor in files of the images directory. */
	const struct page_store *stores;
	size_t store_count;
	/* Every thread is complete and stands: the last moment at which the restore can be taken back. Returns 0 or a
	 * failure, which ends all of its processes. NULL = go on. */
	int (*before_resume)(void *context, struct failure *failure);
	void *context;
};

/* A tree that a dump left stopped (`criu kill`, `criu resume`). */
struct stopped_options {
	pid_t pid;                /* root of the tree */
	int images_dirfd;         /* the dump it must be the tree of; -1 = not given */
	unsigned timeout_seconds; /* for the tasks to end or run again; 0 = wait for ever */
};
