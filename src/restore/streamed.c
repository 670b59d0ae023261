/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A streamer gives a file once, to be read from its begin to its end; a restore looks into pages in any order, from
 * many processes. So a file that is asked for the first time is brought whole into a directory that exists in memory
 * only, and all who read images read there (restore_image_open). Nothing is asked for ahead: what a restore needs is
 * known where it is opened, and nowhere else.
 *
 * The pages of the tasks are asked for when their pagemaps are read, before the first process exists; they need memory
 * twice until the tree is made; those of shared memory only until they are in it. The directory goes away with its last
 * descriptor, before the tree is waited for.
 */
#include "restore/streamed.h"

#include "base/fd.h"
#include "base/memory_directory.h"
#include "image/image_streamer.h"
#include "image/page_chain.h"
#include "kinds/fd/held.h"

static int fetch(void *context, const char *name)
{
	struct restore *restore = context;

	return image_streamer_fetch(restore->streamer, restore->images_dirfd, name, &restore->failure);
}

int streamed_open(struct restore *restore)
{
	const struct restore_options *options = restore->options;

	if (!options->stream)
		return 0;
	restore->images_dirfd = -1;
	int error = image_streamer_connect(options->images_dirfd, IMAGE_STREAMER_SERVE, &restore->failure,
					   &restore->streamer);
	if (!error)
		error = memory_directory_open("100%", &restore->failure, &restore->images_dirfd);
	return error;
}

static int hold(void *context, int *fd)
{
	return held_keep(context, fd);
}

int streamed_move(struct restore *restore)
{
	return restore->streamer ? image_streamer_move(restore->streamer, hold, restore) : 0;
}

void streamed_serve_chain(struct restore *restore)
{
	if (restore->streamer)
		page_chain_set_fetch(restore->page_chain, fetch, restore);
}

int streamed_finish(struct restore *restore)
{
	int error = restore->streamer
			    ? image_streamer_check(restore->streamer, restore->images_dirfd, &restore->failure)
			    : 0;

	image_streamer_close(&restore->streamer);
	return error;
}

void streamed_close(struct restore *restore)
{
	image_streamer_close(&restore->streamer);
	if (restore->options->stream)
		close_fd_pointer(&restore->images_dirfd);
	restore->images_dirfd = -1;
}
