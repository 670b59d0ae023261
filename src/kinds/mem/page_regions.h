/* SPDX-License-Identifier: Apache-2.0 */
/* Ranges of pages with what they have in common, as PAGEMAP_SCAN gives them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel/uapi.h"

/* In the order of addresses, without overlaps. free() @items. */
struct region_list {
	struct page_region *items;
	size_t count, capacity;
};

/* Appends a range; what overlaps the last one is left out. */
void region_list_add(struct region_list *list, const struct page_region *region);

/*
 * Appends the answer to @question, of which the ranges are [start, end); vec is not looked at. @pagemap_fd: of
 * /proc/PID/pagemap. Returns 0 or -errno.
 */
int page_regions_scan(int pagemap_fd, const struct pm_scan_arg *question, struct region_list *list);

/*
 * The same for pages of anonymous memory that a scan has armed whose answer is @known: only what may have changed since
 * is asked @question. The rest comes from @known, without PAGE_IS_WRITTEN. @all_tracked: fail with -EPERM if some of
 * the range is not tracked, whose marks mean nothing. Returns 0 or -errno; then @list is unchanged.
 */
int page_regions_scan_changes(int pagemap_fd, const struct pm_scan_arg *question, bool all_tracked,
			      const struct region_list *known, struct region_list *list);
