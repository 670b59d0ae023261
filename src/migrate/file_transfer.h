/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --send-files: regular files that the destination has not, or has in another version. Only what differs travels: the
 * destination tells the hash of every block of what it has, the source answers with data, with "take it from your
 * old file", or with "a hole".
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/fail.h"

#include "migrate.pb-c.h"

struct protocol;

enum { FILE_BLOCK_BYTES = 64 << 10 };

/* ---- source ---- */

/*
 * Sends what @need asks for of @file, from its path below @root_dirfd. @sent may be NULL.
 * @now  gets the hashes of what was sent, on the heap (free now->blocks): the @need of a second time; may be NULL
 * Returns 0 or a failure ("file-read", or of the link).
 */
int file_send(struct protocol *protocol, int root_dirfd, const MigrateFile *file, const FileNeed *need, FileNeed *now,
	      void (*sent)(void *context, const char *path, uint64_t sent_bytes, uint64_t size), void *context,
	      struct failure *failure);

/* ---- destination ---- */

/*
 * Hashes the blocks of the regular file at @path into @need, in the arena. No file, or none that can be read: no
 * blocks.
 */
void file_need_fill(struct arena *arena, const char *path, FileNeed *need);

/* A file that is being written under another name. */
struct file_arrival;

/*
 * Starts a file: makes an empty one next to @file->path, to which no symbolic link may lead. Returns 0 or a failure.
 */
int file_arrival_new(const MigrateFile *file, struct failure *failure, struct file_arrival **ret_arrival);
/*
 * Takes one piece. With data->last the file gets its owner, mode, time and name, and the arrival is done.
 * Returns 0 or a failure.
 */
int file_arrival_take(struct file_arrival *arrival, const FileData *data, struct failure *failure);
/* Removes what has come if it is not complete, and frees. *arrival becomes NULL; NULL is fine. */
void file_arrival_free(struct file_arrival **arrival);
