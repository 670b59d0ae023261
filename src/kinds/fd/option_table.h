/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket options that CRIU's image format has no field for: one row each (extension sk_opts_entry.more_options).
 */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

#include "sk-opts.pb-c.h"

/* Newer than the headers of some distributions. */
enum {
	OPTION_SO_RCVMARK = 75,
	OPTION_SO_PASSPIDFD = 76,
	OPTION_SO_RCVPRIORITY = 82,
	OPTION_SO_PASSRIGHTS = 83,
};

enum option_when {
	OPTION_EARLY, /* changes what bind() and connect() do */
	OPTION_LATE,  /* the socket is bound and connected */
	OPTION_LAST,  /* forbids what else is restored */
};

/*
 * Adds the options of the socket @fd that differ from those of a fresh socket of its sort. Everything lies in
 * dump->arena. Returns 0 or a failure without an object.
 */
int option_table_dump(struct dump *dump, int fd, SkOptsEntry *options);

/*
 * Sets those of the options that belong to @when. Only options of the table are ever set, so an image cannot set
 * others. Returns 0 or a failure without an object.
 */
int option_table_restore(struct failure *failure, int fd, enum option_when when, size_t count,
			 SocketOptionEntry *const *options);
