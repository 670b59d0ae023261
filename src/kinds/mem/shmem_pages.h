/* SPDX-License-Identifier: Apache-2.0 */
/* The content of shared memory: pagemap-shmem-<id>.img and its pages file. */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

struct tracked_shmem;

/*
 * Writes the pages of the file behind @fd (readable) that are not holes, or hands them to the page sink: if @tracked is
 * not NULL, only those that the other side does not have. Returns 0 or a failure.
 */
int shmem_pages_write(struct dump *dump, int fd, uint64_t size_bytes, uint32_t id, struct tracked_shmem *tracked);
/* Fills the empty file behind @fd (writable, of the given size). Returns 0 or a failure. */
int shmem_pages_read(struct restore *restore, int fd, uint64_t size_bytes, uint32_t id, bool is_hugetlb);
