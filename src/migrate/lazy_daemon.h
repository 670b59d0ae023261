/* SPDX-License-Identifier: Apache-2.0 */
/* `criu lazy-pages`: takes the memory of restored tasks over and brings their pages. */
#pragma once

#include <stdbool.h>

#include "base/fail.h"

struct page_supply;

struct lazy_daemon_options {
	int work_dirfd;               /* of the sockets that restore and a second daemon look for */
	int stop_fd;                  /* readable = end, with the failure "cancelled"; -1 = none */
	bool goes_on;                 /* the restore is over: only what a guard holds is to be brought */
	void (*ready)(void *context); /* the restore may begin */
	void *context;
};

/*
 * Serves one restore, or goes on with what a guard has held for a daemon that was killed, until all memory is in place.
 * After a failure the guard goes on holding it: tasks wait. Returns 0 or a failure.
 */
int lazy_daemon_run(const struct lazy_daemon_options *options, struct page_supply *supply, struct failure *failure);
