/* SPDX-License-Identifier: Apache-2.0 */
/* `criu page-server`: takes the pages of one dump from the network and writes pagemap and pages images. */
#pragma once

#include "base/fail.h"

struct stream;

/*
 * Serves one connection until the other side closes it in the protocol's way. Only then the pagemaps are written; after
 * a failure nothing is left in the directory. The other side is not trusted.
 * Returns 0 or a failure.
 */
int page_server_run(struct stream *stream, int images_dirfd, struct failure *failure);
