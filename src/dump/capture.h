/* SPDX-License-Identifier: Apache-2.0 */
/* A dump whose images go to an image streamer (image/image_streamer.h): `dump --stream`. */
#pragma once

#include "base/fail.h"

struct capture;
struct page_sink;

/*
 * Connects to the streamer that listens in @images_dirfd. As long as the capture exists SIGPIPE is ignored. Returns 0
 * or a failure.
 */
int capture_open(int images_dirfd, struct failure *failure, struct capture **ret_capture);
/* For dump_options.page_sink; it is the capture's. */
struct page_sink *capture_sink(struct capture *capture);
/* For dump_options.images_dirfd: a directory in memory for the small images; it is the capture's. */
int capture_directory(const struct capture *capture);
/*
 * Everything is written: sends the small images, inventory.img last, waits until the streamer has taken every byte out
 * of the pipes, and hangs up. Termination signals that are blocked end the waiting. Returns 0 or a failure.
 */
int capture_finish(struct capture *capture, struct failure *failure);
/* NULL is allowed. */
void capture_free(struct capture *capture);
