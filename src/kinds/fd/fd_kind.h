/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kind of open file: how it is recognised, dumped and made again. A kind is one .c file whose only exported
 * symbol is its const `struct fd_kind`, plus one row in fd_kinds.c; rows are asked in order, the first match wins.
 */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* A descriptor of the target, as the frame of the dump found it. */
struct target_fd {
	struct dump_task *task;
	int number; /* in the task's table; -1 when it was in flight in a queue */
	int fd;     /* our own descriptor for the same open file; lives only during the call */
	struct stat stat;
	int flags;              /* F_GETFL, without FD_CLOEXEC */
	uint64_t position;      /* lseek(SEEK_CUR), 0 where it cannot seek */
	const char *link;       /* what /proc/PID/fd/N says: a path, "socket:[1]", "anon_inode:[eventpoll]" */
	struct dump_file *file; /* its id is given */
	FownEntry *fown;        /* F_GETOWN_EX, F_GETSIG, F_GETOWNER_UIDS */
};

struct fd_kind {
	const char *name; /* for people: "pipe" */
	FdTypes type;     /* file_entry.type */

	/* ---- dump: the tree is frozen ---- */
	/* Is it mine? Must not fail and must not change anything. */
	bool (*match)(const struct target_fd *target);
	/*
	 * Fills @entry's member for this kind (entry->type and id are set by the caller); parts are allocated from
	 * dump->arena. Called once per open file description. Must not change the target's state. Returns 0 or a
	 * failure (fail(&dump->failure, …) with object NULL: the caller adds task and fd).
	 */
	int (*dump)(struct dump *dump, const struct target_fd *target, FileEntry *entry);
	/* After every descriptor of the tree was dumped: queues, cross references, images of its own. May be NULL. */
	int (*dump_finish)(struct dump *dump);
	/*
	 * After the images are complete or the dump failed: undo what dump() changed outside (unlock), free state.
	 * @tree_is_gone: the tree will be killed, so it must leave no trace on the network. May be NULL.
	 */
	void (*dump_release)(struct dump *dump, bool tree_is_gone);

	/* ---- restore ---- */
	/* In criu itself, before any process exists: reads this kind's own images, checks ranges. May be NULL. */
	int (*prepare)(struct restore *restore);
	/*
	 * In criu itself, after every prepare, before any file is opened: what has to hold outside of the tree until it
	 * runs (the network lock). Unlike prepare it may start threads. May be NULL.
	 */
	int (*before_open)(struct restore *restore);
	/*
	 * In each task that leads a session, right after setsid(), before the children that inherit from it what a
	 * session has: its terminal. May be NULL.
	 */
	int (*session_started)(struct restore *restore);
	/* In the owner task: makes the open file; peers may be missing yet. The caller moves *ret_fd to its number. */
	int (*open)(struct restore *restore, struct restore_file *file, int *ret_fd);
	/* In the owner task, when every descriptor of the whole tree is in its place. May be NULL. */
	int (*connect)(struct restore *restore, struct restore_file *file, int fd);
	/* In the owner task, after every connect of the tree. May be NULL. */
	int (*finish)(struct restore *restore, struct restore_file *file, int fd);
	/* In every task, after the `finish` of its files. May be NULL. */
	int (*finish_task)(struct restore *restore);
	/* In criu itself, when every task stands at its last step, before the tree runs. May be NULL. */
	int (*before_resume)(struct restore *restore);
};

/* The table, ends with NULL; the last row is the kind that refuses everything unknown with a clear line. */
extern const struct fd_kind *const fd_kinds[];

/* A kind's own state pointer of this dump or restore (NULL at first). */
void **dump_kind_state(struct dump *dump, const struct fd_kind *kind);
void **restore_kind_state(struct restore *restore, const struct fd_kind *kind);
