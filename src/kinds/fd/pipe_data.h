/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes that lie in pipes and fifos, and the images that keep them (pipes-data.img, fifo-data.img). */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uthash.h>

#include "model/dump.h"
#include "model/restore.h"

/* Writes the contents of many pipes into one image. Start with PIPE_DATA_WRITER_INIT. */
struct pipe_data_writer {
	enum image_kind kind;
	struct image *image; /* made when the first pipe has something to say */
	int scratch[2];      /* a pipe of ours that tee() copies into */
	int scratch_bytes;   /* its capacity */
	char *buffer;
	size_t buffer_bytes;
};

#define PIPE_DATA_WRITER_INIT(image_kind) \
	((struct pipe_data_writer){       \
		.kind = (image_kind),     \
		.scratch = {-1, -1},      \
	})

/*
 * Appends what lies in a pipe and its capacity, and leaves it in the pipe.
 *
 * @fd  a descriptor of ours for the pipe that can be read
 * Returns 0 or a failure.
 */
int pipe_data_dump(struct dump *dump, struct pipe_data_writer *writer, uint32_t pipe_id, int fd);
/* Completes the image. Returns 0 or a failure. */
int pipe_data_finish(struct pipe_data_writer *writer);
/* Frees everything; an image that is not complete yet stays as it is. */
void pipe_data_release(struct pipe_data_writer *writer);

/* A run of bytes in the image; a packet, if a pipe has several. */
struct pipe_data_chunk {
	off_t offset;
	uint32_t bytes;
	struct pipe_data_chunk *next;
};

/* The content of one pipe in an image. */
struct pipe_data {
	uint32_t pipe_id;
	uint32_t capacity_bytes; /* 0 = not known */
	struct pipe_data_chunk *first, *last;
	UT_hash_handle hh;
};

/* Reads where everything lies; *ret_table is a hash by pipe_id in the restore's arena (NULL: no image). */
int pipe_data_prepare(struct restore *restore, enum image_kind kind, struct pipe_data **ret_table);
/*
 * Gives a pipe its capacity and its content.
 *
 * @fd       can be written and does not block
 * @packets  the content goes in as packets
 * Returns 0 or a failure.
 */
int pipe_data_restore(struct restore *restore, enum image_kind kind, const struct pipe_data *data, int fd,
		      bool packets);
