/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection to an image streamer (criu-image-streamer and programs like it), which takes or gives the image files
 * of one dump or restore through pipes, so that they need not lie on a disk.
 *
 * Its socket stands in the images directory. For each file there is a request with the file's name; when images are
 * given, an answer that tells whether there is such a file; and then one end of a new pipe, sent with SCM_RIGHTS. The
 * end of the pipe is the end of the file. A file can be asked for once, and there is no list of them.
 */
#pragma once

#include <stdbool.h>

#include "base/fail.h"

enum image_streamer_side {
	IMAGE_STREAMER_CAPTURE, /* takes the images of a dump */
	IMAGE_STREAMER_SERVE,   /* gives those of a restore */
};

struct image_streamer;

/* Connects to the streamer that listens in the images directory. Returns 0 or a failure. */
int image_streamer_connect(int images_dirfd, enum image_streamer_side side, struct failure *failure,
			   struct image_streamer **ret_streamer);
/* Hangs up: the streamer knows that no more requests come. *streamer becomes NULL, and may be. */
void image_streamer_close(struct image_streamer **streamer);
/* Calls @move for the descriptor of the connection, to get it out of the way. Returns 0 or what @move does. */
int image_streamer_move(struct image_streamer *streamer, int (*move)(void *context, int *fd), void *context);
/* Whether the streamer has not hung up. */
bool image_streamer_is_there(const struct image_streamer *streamer);

/*
 * Begins a file of a dump. *ret_fd is a pipe that does not block (O_NONBLOCK), owned by the caller; closing it ends
 * the file. Returns 0 or a failure.
 */
int image_streamer_create(struct image_streamer *streamer, const char *name, struct failure *failure, int *ret_fd);

/*
 * Brings file @name into the directory @dirfd, if the streamer has it and it is not there already. May be called by
 * several processes at once that share the connection and the directory. Returns 0, also if there is no such file, or a
 * failure.
 */
int image_streamer_fetch(struct image_streamer *streamer, int dirfd, const char *name, struct failure *failure);
/*
 * Whether what has been fetched is whole: a streamer that is killed ends its pipes too. It must still answer; the
 * question is for a file that it has given already. Returns 0 or a failure.
 */
int image_streamer_check(struct image_streamer *streamer, int dirfd, struct failure *failure);
/* The failure of a streamer that is gone while @name was on its way (NULL = no file). Returns it. */
int image_streamer_gone(struct failure *failure, const char *name);
