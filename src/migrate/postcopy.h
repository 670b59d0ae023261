/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Brings memory to tasks that run already: faults first, then everything else, beginning behind the last fault.
 *
 * A space is a userfaultfd and its ranges (model/lazy_memory.h); several spaces may want pages of one image: forks.
 * Where pages come from is the supply's matter; it may answer at once or later.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "image/page_chain.h"

struct postcopy;
struct page_supply;

struct page_supply_ops {
	/* The pages of image @id; read only. Returns 0 or a failure. */
	int (*places)(struct page_supply *supply, struct failure *failure, uint32_t id,
		      const struct page_places **ret_places);
	/*
	 * Asks for pages of one place. Either gives them with postcopy_deliver() before it returns, or later from
	 * receive(); fewer than asked for are right as long as it is one. @urgent: a task waits for the first of them.
	 * Returns 0 or a failure.
	 */
	int (*request)(struct page_supply *supply, struct failure *failure, struct postcopy *postcopy, uint32_t id,
		       uint64_t address, uint64_t pages, bool urgent);
	/* Called when fd() is readable: takes one answer and delivers it. Returns 0 or a failure. */
	int (*receive)(struct page_supply *supply, struct failure *failure, struct postcopy *postcopy);
	/* A descriptor for epoll, -1 = answers never come later. */
	int (*fd)(struct page_supply *supply);
};

struct page_supply {
	const struct page_supply_ops *ops;
	size_t window; /* requests that may be on their way before no more are made but urgent ones */
};

/* @supply and @failure outlive it; @work_dirfd: of the guard, which is found or made here. Returns 0 or a failure. */
int postcopy_new(struct page_supply *supply, int work_dirfd, struct failure *failure, struct postcopy **ret_postcopy);
void postcopy_free(struct postcopy *postcopy);
/* A new space, whose descriptors belong to it from now on. Returns when the guard has it too. 0 or a failure. */
int postcopy_add(struct postcopy *postcopy, int userfault_fd, int state_fd);
/* For the supply: pages [@address …) of image @id. Returns 0 or a failure. */
int postcopy_deliver(struct postcopy *postcopy, uint32_t id, uint64_t address, uint64_t pages, const void *data);
/* Whether memory is still missing somewhere. */
bool postcopy_has_work(const struct postcopy *postcopy);
/*
 * Does what there is to do, and waits for something if that is nothing.
 * @extra_fd  returns also when this is readable; -1 = none. @ret_extra  whether it is
 * Returns 0 or a failure.
 */
int postcopy_step(struct postcopy *postcopy, int extra_fd, bool *ret_extra);
