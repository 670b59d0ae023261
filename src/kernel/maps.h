/* SPDX-License-Identifier: Apache-2.0 */
/* The mappings of a process, from one read of /proc/PID/smaps (VmFlags are nowhere else). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The two-letter codes of VmFlags that matter, as bits. */
enum mapping_flags {
	MAPPING_MAY_WRITE = 1 << 0,
	MAPPING_GROWS_DOWN = 1 << 1,
	MAPPING_LOCKED = 1 << 2,
	MAPPING_LOCK_ON_FAULT = 1 << 3,
	MAPPING_IO = 1 << 4, /* memory of a device */
	MAPPING_SEALED = 1 << 5,
	MAPPING_NO_RESERVE = 1 << 6,
	MAPPING_HUGETLB = 1 << 7,
	MAPPING_DROPPABLE = 1 << 8,
	MAPPING_SHADOW_STACK = 1 << 9,
	MAPPING_USERFAULT = 1 << 10, /* registered with a userfaultfd that brings pages */
	MAPPING_PFN = 1 << 11,       /* page frames without struct page */
};

struct mapping {
	uint64_t start, end; /* bytes */
	uint64_t offset;     /* bytes in the file */
	int protection;      /* PROT_* */
	bool shared;
	uint32_t flags;  /* enum mapping_flags */
	uint64_t advice; /* bit N = madvise(N) is in effect */
	uint32_t dev_major, dev_minor;
	uint64_t inode;
	const char *name; /* "", "[heap]", a path; in the maps' text */
};

struct mappings {
	struct mapping *items; /* ascending addresses */
	size_t count;
	char *text; /* owns the names */
};

/* Returns 0 or -errno; the caller frees with mappings_free(). */
int mappings_read(int proc_dirfd, struct mappings *ret_mappings);
/* Without VmFlags (flags and advice are 0): from /proc/PID/maps, five times cheaper. */
int mappings_read_short(int proc_dirfd, struct mappings *ret_mappings);
void mappings_free(struct mappings *mappings);
