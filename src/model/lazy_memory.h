/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that comes after its task runs: what a restored task hands to `criu lazy-pages`, and what is kept about it.
 *
 * A space is a userfaultfd with the ranges that are registered with it, and where in the images the pages of each range
 * lie: they move apart when the task calls mremap. The ranges are kept in a memfd, which whoever holds the userfaultfd
 * holds too, so that a new daemon goes on where a killed one was.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define LAZY_SOCKET_NAME "lazy-pages.socket"
#define LAZY_GUARD_NAME "lazy-pages.guard"
#define LAZY_NO_IMAGE UINT64_MAX

struct lazy_range {
	uint64_t address, bytes;
	uint64_t image; /* address in the images; LAZY_NO_IMAGE: missing pages are zero */
};

struct lazy_ranges {
	struct lazy_range *items;
	size_t count, capacity;
};

/* What a restored task sends, in one packet, with its userfaultfd, the memfd, and a socket that is answered by a byte.
 */
struct lazy_offer {
	uint32_t magic;
	uint32_t pid; /* in the images */
};

enum { LAZY_OFFER_MAGIC = 0x4c5a5931, LAZY_OFFER_FDS = 3 };

/* A new memfd for ranges, or -errno. */
int lazy_state_create(void);
/* Replaces what the memfd holds: at every moment it holds the old or the new ranges. Returns 0 or -errno. */
int lazy_state_write(int fd, uint32_t pid, const struct lazy_ranges *ranges);
/* Returns 0 or -errno, -EINVAL if it holds something else. The caller frees ret_ranges->items. */
int lazy_state_read(int fd, uint32_t *ret_pid, struct lazy_ranges *ret_ranges);
/*
 * @bytes of the memfd that are zero at first and belong to whoever brings the memory: which pages have arrived. Shared
 * with all who hold the memfd, so that they outlive a daemon. To be unmapped by the caller; NULL = that is not
 * possible.
 */
uint8_t *lazy_state_bits(int fd, size_t bytes);
