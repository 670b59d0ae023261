/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors of unnamed shared memory (kinds/mem/shmem.h has the memory itself). */
#pragma once

#include "kinds/fd/fd_kind.h"

extern const struct fd_kind memfd_kind;

/*
 * Restore, in a task: opens the memory of file @file_id (type MEMFD) with @flags to map it. The caller owns *ret_fd.
 * Returns 0 or a failure.
 */
int memfd_open_mapping(struct restore *restore, uint32_t file_id, int flags, int *ret_fd);
