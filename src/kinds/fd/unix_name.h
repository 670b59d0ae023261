/* SPDX-License-Identifier: Apache-2.0 */
/* Names of unix sockets: paths, whose files live or are gone, and abstract names. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

#include "sk-unix.pb-c.h"

/*
 * Fills name, name_dir, file_perms, deleted and file_path of @entry for the socket @fd of @task.
 * Returns 0 or a failure (no object).
 */
int unix_name_dump(struct dump *dump, const struct dump_task *task, int fd, UnixSkEntry *entry);

static inline bool unix_name_is_abstract(const UnixSkEntry *entry)
{
	return entry->name.len && !entry->name.data[0];
}

static inline bool unix_name_is_path(const UnixSkEntry *entry)
{
	return entry->name.len && entry->name.data[0];
}

/* `unix socket "/run/x.sock"`, `unix socket @name` or `unix socket 123` for people. Returns @buffer. */
char *unix_name_show(const UnixSkEntry *entry, char *buffer, size_t size);

/* Is the name of an image one that can be bound? Returns 0 or a failure. */
int unix_name_check(struct restore *restore, const UnixSkEntry *entry);

/*
 * Binds @fd as the program had it: an abstract name, or a path whose file is made (in place of a socket file that
 * lies there) with its permissions. Inside restore_lock(). Returns 0 or a failure.
 */
int unix_name_bind(struct restore *restore, int fd, const UnixSkEntry *entry);

/* Gives the socket's file, which may have no name, its owner and mode. Returns 0 or a failure. */
int unix_name_apply_perms(struct restore *restore, const UnixSkEntry *entry, int path_fd);
/* Opens the file of a bound socket (O_PATH). Returns 0 or a failure. */
int unix_name_open(struct restore *restore, const UnixSkEntry *entry, int *ret_fd);
/* Connects @fd to the socket whose file @path_fd is. Returns 0 or -errno. */
int unix_name_connect_file(int fd, int path_fd);
/* Connects @fd to a bound socket by its name. Returns 0 or -errno. */
int unix_name_connect(struct restore *restore, int fd, const UnixSkEntry *entry);

/*
 * A root directory that only this process sees: an empty file system in which any path can be bound without
 * touching the real one. Abstract names know no directories and stay what they are.
 */
struct unix_private_root {
	int real_root, working_directory, private_root; /* -1 = not made yet */
};
#define UNIX_PRIVATE_ROOT_INIT \
	{                      \
		-1, -1, -1     \
	}

/* Makes it, if needed, the root and working directory of this process. Returns 0 or a failure. */
int unix_private_root_enter(struct restore *restore, struct unix_private_root *root);
void unix_private_root_leave(struct unix_private_root *root);
/*
 * Binds @fd to a name (sun_path) and its directories inside the private root. *ret_fd is an O_PATH descriptor of the
 * socket's file, whose name is removed again; -1 for an abstract name. Returns 0 or -errno.
 */
int unix_private_root_bind(int fd, const void *name, size_t length, int *ret_path_fd);
