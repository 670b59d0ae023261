/* SPDX-License-Identifier: Apache-2.0 */
/* Pages for `criu lazy-pages`: from images, and those that a lazy dump has left from its page server. */
#pragma once

#include "base/fail.h"
#include "migrate/postcopy.h"

struct stream;

/* @stream  to the page server of the dump, and the supply's from now on; NULL = everything is in the images. */
struct page_supply *lazy_supply_new(int images_dirfd, struct stream *stream, struct failure *failure);
/* Tells the page server that nothing is missing any more: it may end the tree. Returns 0 or a failure. */
int lazy_supply_finish(struct page_supply *supply, struct failure *failure);
void lazy_supply_free(struct page_supply *supply);
