/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of one restore. It is read and checked completely (restore/read.c) before the first process is made;
 * then every restored task is a fork of criu that runs restore/tree.c with its own copy of this structure, in which
 * `self` is the task it becomes, until it leaves criu's address space (restore/switch.c).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/arena.h"
#include "base/fail.h"
#include "image/image.h"
#include "model/options.h"

#include "core.pb-c.h"
#include "fdinfo.pb-c.h"
#include "fs.pb-c.h"
#include "inventory.pb-c.h"
#include "mm.pb-c.h"
#include "pstree.pb-c.h"
#include "seccomp.pb-c.h"
#include "stats.pb-c.h"

struct fd_kind;
struct image_streamer; /* image/image_streamer.h */
struct mappings;
struct page_chain;
struct time_namespace_restore; /* kinds/ns/time_namespace.c */
struct restore_shared;         /* memory that all tasks of the restore share (restore/shared.h) */

/* One slot of a restored descriptor table. */
struct restore_fd {
	struct restore_task *task;
	int number;
	bool close_on_exec;
	struct restore_file *file;
};

/* One open file description to make again. */
struct restore_file {
	uint32_t id;
	const struct fd_kind *kind;
	const FileEntry *entry;
	struct restore_fd **users; /* in task order; users[0] is the owner, whose task opens the file */
	size_t user_count;         /* 0: not in any descriptor table */
	uint32_t slot;             /* index in the shared table of opened files */
	void *kind_data;           /* the kind's own, set by its `prepare` */
};

struct restore_task {
	size_t index; /* in restore->tasks */
	pid_t pid, ppid, pgid, sid;
	struct restore_task *parent; /* NULL for the root and for helpers' children that are adopted later */
	int state;                   /* enum task_state of model/dump.h */
	const PstreeEntry *entry;
	const CoreEntry *core;          /* the leader's */
	const CoreEntry **thread_cores; /* [0] is core */
	size_t thread_count;
	const TaskKobjIdsEntry *ids;
	const MmEntry *mm;
	const FsEntry *fs;
	struct restore_fd *fds; /* ascending numbers */
	size_t fd_count;
	struct restore_memory *memory;  /* restore/memory.h */
	struct stage *stage;            /* restore/stage.h; NULL for a dead task */
	int64_t *restart_results;       /* by thread, of interrupted calls entered again; NULL = none */
	uint32_t first_notice;          /* id of the leader's notice, its threads follow */
	struct restore_tree_node *node; /* how the process comes to be (restore/tree.h) */
};

struct restore {
	const struct restore_options *options;
	struct failure failure;
	struct arena arena;
	int images_dirfd; /* read through restore_image_open() and restore_image_fetch() only */
	struct image_streamer
		*streamer; /* brings images into images_dirfd when they are asked for; NULL = they are there */
	const InventoryEntry *inventory;
	struct restore_task **tasks; /* parents before children; [0] is the root */
	size_t task_count;
	struct restore_file **files; /* ascending ids */
	size_t file_count;
	int above_tables;   /* a number above all descriptor tables of the tree; what is held for all lies there */
	void **kind_states; /* one pointer per row of fd_kinds, owned by the kind */
	struct restored_locks *file_locks; /* kinds/fd/file_lock.c; NULL = there are none */
	struct restore_shared *shared;
	const struct mappings *own_mappings; /* of criu before it made the first process */
	uint64_t stage_address, stage_end;   /* addresses that no task uses (restore/memory_read.c) */
	struct restore_task *self;           /* NULL in criu itself */
	int *offered;                        /* descriptors of this process that wait to be taken (restore_offer) */
	size_t offered_count, offered_capacity;
	struct restore_task *fork_origin;          /* the task whose memory this process inherited */
	const struct restore_task *creator;        /* the live task that this process is a fork of, or NULL */
	const struct xstate_layout *xstate_layout; /* of this CPU (kinds/task/registers.c) */
	uint8_t *xstate_area;                      /* a thread's, as this kernel lays it out */
	size_t xstate_bytes;
	struct page_chain *page_chain;      /* where pages lie (image/page_chain.h) */
	uint64_t own_bounding, own_ambient; /* capability sets of criu itself (kinds/task/creds.c) */
	bool own_sets_known;
	size_t seccomp_bytes;  /* room that the filters of the images need in a thread's last program */
	int lazy_fd;           /* connection to the daemon of --lazy-pages; -1 = none */
	int notify_fd;         /* where the interpreter reports to; a number no task uses */
	SeccompEntry *seccomp; /* NULL = not read, no task needs it */
	struct time_namespace_restore *time_namespace; /* that the root enters; NULL = it stays in that of criu */
	RestoreStatsEntry stats;
	struct restore_progress *progress; /* restore/progress.c */
	const char *stage_name;
};

/* "task 41 (redis-server)"; returns a string in the arena. */
const char *restore_task_name(struct restore *restore, const struct restore_task *task);
/* The task that will have this pid, or NULL. */
struct restore_task *restore_find_task(const struct restore *restore, pid_t pid);
/* The file with this id, or NULL. */
struct restore_file *restore_find_file(const struct restore *restore, uint32_t id);

/* ---- images; in criu itself and in tasks ---- */

/* Makes sure that image @kind of @id lies in images_dirfd, if there is one. Returns 0 or a failure. */
int restore_image_fetch(struct restore *restore, enum image_kind kind, uint64_t id);
/* image_open() and image_read_one() for the images of the restore. */
int restore_image_open(struct restore *restore, enum image_kind kind, uint64_t id, struct image **ret_image);
int restore_image_read_one(struct restore *restore, enum image_kind kind, uint64_t id, ProtobufCMessage **ret_message);

/*
 * ---- for kinds, inside a task (restore->self is set) ----
 * Files are opened in ascending id, each by its owner. A file may wait for files with lower ids only, so no cycle
 * can form.
 */

/*
 * Moves *fd to a number that no restored descriptor of this task uses and keeps it open until the tree has all its
 * descriptors. Returns 0 or a failure; *fd is the new number and no longer the caller's to close.
 */
int restore_park(struct restore *restore, int *fd);
/*
 * Offers a descriptor of this process to whoever opens file @id (the other end of a pair): parks it and announces
 * it. Returns 0 or a failure. Takes ownership of @fd.
 */
int restore_offer(struct restore *restore, uint32_t id, int fd);
/* Waits for the offer for file @id and takes a descriptor of the same open file. Returns 0 or a failure. */
int restore_take_offer(struct restore *restore, uint32_t id, int *ret_fd);
/* Waits until file @id (lower than the one being opened, or any in `connect`/`finish`) is open and takes a descriptor
 * of it. */
int restore_take_file(struct restore *restore, uint32_t id, int *ret_fd);
/* Waits like restore_take_file() and gives "/proc/PID/fd/N", to reopen pipes with other flags. */
int restore_file_path(struct restore *restore, uint32_t id, char *path, size_t size);
/*
 * Opens a file that is in no descriptor table (in flight in a queue) through its kind, once for the whole tree: later
 * calls, of any task, take a copy, and so do restore_take_file() and restore_file_path(). The caller owns *ret_fd.
 */
int restore_open_unowned(struct restore *restore, uint32_t id, int *ret_fd);
/* Copies pages of @task at @address from the images; all must be there. Returns 0 or a failure. */
int restore_read_pages(struct restore *restore, const struct restore_task *task, uint64_t address, void *buffer,
		       size_t bytes);
/* For the progress that the user sees: pages that this task will load. */
void restore_expect_pages(struct restore *restore, uint64_t pages);

struct restore_page_counts {
	uint64_t restored;                 /* written */
	uint64_t compared, compared_equal; /* with what came with the fork; equal ones were left alone */
};

/* For progress and statistics: pages that this task has loaded. From any thread. */
void restore_count_pages(struct restore *restore, const struct restore_page_counts *counts);
/*
 * A range of at least @bytes that no task of the tree and no mapping of criu's uses; each call gives another one.
 * Returns its address, 0 if there is none.
 */
uint64_t restore_stage_address(struct restore *restore, uint64_t bytes);
/* A lock over all tasks of the restore, for steps that must not overlap (a name bound for a moment). */
void restore_lock(struct restore *restore);
void restore_unlock(struct restore *restore);
/* Takes on the effective ids of the task's credentials (SO_PEERCRED, file owners) and gives them back. */
int restore_assume_identity(struct restore *restore, uint32_t euid, uint32_t egid);
void restore_drop_identity(struct restore *restore);
