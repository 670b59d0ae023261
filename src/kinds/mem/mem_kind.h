/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kind of mapping: how it is recognised, what the images say of it, and what is mapped at restore. Rows of
 * mem_kinds.c are asked in order, the first match wins.
 */
#pragma once

#include "kernel/maps.h"
#include "model/dump.h"
#include "model/restore.h"

/* What to do about an io_uring, seen as a descriptor or as a mapping. */
#define IO_URING_HINT                                                                                          \
	"start the program without io_uring (node: UV_USE_IO_URING=0, PostgreSQL: io_method=worker, MariaDB: " \
	"innodb_use_native_aio=OFF)"

/* vma_entry.status: facts of the format. */
enum vma_status {
	VMA_STATUS_REGULAR = 1 << 0,
	VMA_STATUS_STACK = 1 << 1,
	VMA_STATUS_VSYSCALL = 1 << 2,
	VMA_STATUS_VDSO = 1 << 3,
	VMA_STATUS_HEAP = 1 << 5,
	VMA_STATUS_FILE_PRIVATE = 1 << 6,
	VMA_STATUS_FILE_SHARED = 1 << 7,
	VMA_STATUS_ANON_SHARED = 1 << 8,
	VMA_STATUS_ANON_PRIVATE = 1 << 9,
	VMA_STATUS_SYSVIPC = 1 << 10,
	VMA_STATUS_SOCKET = 1 << 11,
	VMA_STATUS_VVAR = 1 << 12,
	VMA_STATUS_AIO_RING = 1 << 13,
	VMA_STATUS_MEMFD = 1 << 14,
	VMA_STATUS_SHADOW_STACK = 1 << 15,
};

struct mem_kind {
	const char *name;
	/* ---- dump ---- */
	bool (*match)(const struct mapping *mapping);
	/* Sets status, flags, shmid, fdflags; the frame has set the rest. Returns 0 or a failure. */
	int (*dump)(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry);
	/* Private pages of it belong into the images. */
	bool has_private_pages;

	/* ---- restore ---- */
	bool (*match_entry)(const VmaEntry *entry);
	/* The kernel makes it, or the switch moves it: it is not mapped like the others. */
	bool is_special;
	/* The descriptor to map (the caller closes it), -1 for anonymous memory. */
	int (*open)(struct restore *restore, const VmaEntry *entry, int *ret_fd);
};

/* The table, ends with NULL; the last row refuses. */
extern const struct mem_kind *const mem_kinds[];
const struct mem_kind *mem_kind_of_mapping(const struct mapping *mapping);
/* NULL if no kind knows the entry. */
const struct mem_kind *mem_kind_of_entry(const VmaEntry *entry);
