/* SPDX-License-Identifier: Apache-2.0 */
/* Files whose recorded path does not lead to them: remap-fpath.img says what does. */
#pragma once

#include "kinds/fd/fd_kind.h"

struct remap_dump;
struct remap_restore;

/* ---- dump ---- */

/* A new state in the arena of the dump. */
struct remap_dump *remap_dump_new(struct dump *dump);
/*
 * Takes care of a file whose name is gone: keeps its content in a ghost image or, if it has other names, gives it
 * one (--link-remap).
 * @id     the file's in files.img
 * @entry  its entry, with its old path
 * @fd     a descriptor of ours for it (O_PATH is enough)
 * Returns 0 or a failure without an object.
 */
int remap_dump_file(struct dump *dump, struct remap_dump *remaps, uint32_t id, const RegFileEntry *entry, int fd,
		    const struct stat *stat);
/* Writes remap-fpath.img if there is anything to say. Returns 0 or a failure. */
int remap_dump_finish(struct dump *dump, struct remap_dump *remaps);
/* Removes the names that were made, if the dump failed; frees memory. */
void remap_dump_release(struct dump *dump, struct remap_dump *remaps);

/* ---- restore ---- */

/* In criu: reads remap-fpath.img, makes or finds the files and holds them. Returns 0 or a failure. */
int remap_prepare(struct restore *restore, struct remap_restore **ret_remaps);
/* The held descriptor that leads to file @id, -1 if its path does. */
int remap_find(const struct remap_restore *remaps, uint32_t id);
/* In criu, when all files are open: removes the names that the dump made, closes what is held. */
void remap_release(struct remap_restore *remaps);
