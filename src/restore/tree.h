/* SPDX-License-Identifier: Apache-2.0 */
/* How the processes of the tree come to be: who forks whom, and in which order. */
#pragma once

#include "model/restore.h"

/*
 * One process to make: a task, or a helper that exists only so that sessions, groups and parents come out right.
 */
struct restore_tree_node {
	pid_t pid;                 /* 0: any */
	struct restore_task *task; /* NULL for a helper */
	struct restore_tree_node **children;
	size_t child_count, child_capacity;
	bool before_session;  /* forked before its creator calls setsid() */
	bool makes_session;   /* calls setsid() itself */
	bool adopted;         /* its creator ends, and a subreaper becomes its parent */
	bool ends_after_fork; /* a helper whose only work is to fork */
};

/* Plans who forks whom. Pure: looks at pids, sessions and subreapers only. Returns 0 or a failure. */
int tree_plan(struct restore *restore, struct restore_tree_node **ret_root);
/*
 * True if every process is born in its process group or makes it with its session, so that nobody has to join another.
 */
bool tree_inherits_groups(const struct restore *restore);
/* Lines for --show-plan. */
void tree_print(const struct restore_tree_node *node, int depth, void *file);

/*
 * Makes the root (and through it everything): returns its pid in criu, and does not return in the new processes.
 * @task_main runs in each live task when all of the tree exists; it does not return.
 */
int tree_create(struct restore *restore, struct restore_tree_node *root,
		void (*task_main)(struct restore *restore) __attribute__((noreturn)), pid_t *ret_pid);
/*
 * The fork turned round: the calling process, which has the root's pid already and holds its memory
 * (restore/preload.h), becomes the root, and a new process, its sibling, goes on as criu. Returns 0 in the new process
 * (with *ret_pid: the root), or a failure in the old one.
 */
int tree_become(struct restore *restore, struct restore_tree_node *root,
		void (*task_main)(struct restore *restore) __attribute__((noreturn)), pid_t *ret_pid);
/* Makes a process with the pid @wanted (0: any); a number that is taken for a moment is waited for. Returns like
 * fork(), -1 for a failure. */
pid_t tree_fork(struct restore *restore, pid_t wanted, uint64_t flags);
/* The session that the task keeps from criu, 0 if it has its own (shell jobs). */
pid_t tree_inherited_session(const struct restore *restore);
