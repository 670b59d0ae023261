/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unnamed shared memory: memfds, and shared anonymous mappings. One inode may have many descriptors and mappings in
 * many tasks; its content is dumped and restored once.
 */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

/* ---- dump ---- */

/*
 * The id in memfd.img of the inode behind @fd (any access, but O_PATH); its pages are written at the first call.
 * @link  "/memfd:NAME (deleted)" or "/dev/zero (deleted)"
 * Returns 0 or a failure without an object.
 */
int shmem_dump_inode(struct dump *dump, int fd, const struct stat *stat, const char *link, uint32_t *ret_inode_id);
/*
 * The same for a mapping: the id in files.img of the one file (type MEMFD) that stands for all mappings of the inode.
 */
int shmem_dump_mapping(struct dump *dump, struct dump_task *task, int fd, const struct stat *stat, const char *link,
		       uint32_t *ret_file_id);
/* The name in the link of a memfd, to be freed; NULL if it is shared anonymous memory. */
char *shmem_memfd_name(const char *link);
/* Writes memfd.img if there is anything to say. Returns 0 or a failure. */
int shmem_dump_finish(struct dump *dump);
void shmem_dump_release(struct dump *dump);

/* ---- restore ---- */

/* In criu: makes every inode of memfd.img with its content, and holds it. Returns 0 or a failure. */
int shmem_prepare(struct restore *restore);
/* The held descriptor of the inode, -1 if memfd.img does not have it. */
int shmem_find(struct restore *restore, uint32_t inode_id);
/* In criu, when everybody has mapped what it maps: adds the seals, closes what is held. Returns 0 or a failure. */
int shmem_seal(struct restore *restore);
