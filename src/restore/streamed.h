/* SPDX-License-Identifier: Apache-2.0 */
/* Images that come from an image streamer (restore_options.stream). Without one these functions do nothing. */
#pragma once

#include "model/restore.h"

/* Connects to the streamer and makes the directory in memory that the images come into. Returns 0 or a failure. */
int streamed_open(struct restore *restore);
/* Lets restore->page_chain ask the streamer too. */
void streamed_serve_chain(struct restore *restore);
/* Gets the connection out of the way of the tree's descriptors. Returns 0 or a failure. */
int streamed_move(struct restore *restore);
/* Everything is read: hangs up, if all of it was whole. Returns 0 or a failure. */
int streamed_finish(struct restore *restore);
/* Closes what is still open; the memory of the images is free. */
void streamed_close(struct restore *restore);
