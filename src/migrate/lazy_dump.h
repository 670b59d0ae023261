/* SPDX-License-Identifier: Apache-2.0 */
/* `dump --lazy-pages`: the tree stands still and its memory is given to whoever asks, until nothing is missing. */
#pragma once

#include "base/fail.h"
#include "migrate/page_link.h"

struct dump;
struct lazy_dump;

struct lazy_dump *lazy_dump_new(void);
/* For dump_steps.written: notes which pages have stayed and how to read them. Returns 0 or a failure. */
int lazy_dump_note(struct lazy_dump *lazy, struct dump *dump);
/*
 * Serves connections until one of them says that it has everything; a link that is cut is waited for again.
 * Returns 0 or a failure.
 */
int lazy_dump_serve(struct lazy_dump *lazy, const struct page_link_options *link, int listen_fd,
		    struct failure *failure);
void lazy_dump_free(struct lazy_dump *lazy);
