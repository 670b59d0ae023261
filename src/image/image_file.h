/* SPDX-License-Identifier: Apache-2.0 */
/* One open image file, as reader and writer see it. Private to src/image. */
#pragma once

#include "image/image.h"

#include "ghost-file.pb-c.h"
#include "ipc-msg.pb-c.h"
#include "pagemap.pb-c.h"

#define IMAGE_BUFFER_BYTES (256u << 10)
/* Longer messages do not exist: the largest, mm of a process with 65530 mappings, has about 6 MB. */
#define IMAGE_MESSAGE_LIMIT_BYTES (64u << 20)
/* The format nests ten deep; only directories of control groups nest in themselves, as deep as the kernel allows. */
#define IMAGE_MESSAGE_DEPTH_LIMIT 100

#define IMAGE_HEAD_MAGIC_COMMON 0x54564319u
#define IMAGE_HEAD_MAGIC_SERVICE 0x55105940u

struct image {
	struct failure *failure;
	int fd;
	bool writing;
	bool fd_is_shared; /* the descriptor was given out: its position may have moved */
	int error;         /* first error, -errno */
	enum image_kind kind;
	off_t header_bytes;
	off_t size_bytes; /* of the file when it was opened for reading; -1 = not known */
	off_t offset;     /* of the descriptor: end of what was read, or of what was written */
	size_t start;     /* bytes of the buffer already given out (reading) */
	size_t end;       /* bytes in the buffer */
	bool ghost_chunks;
	uint8_t *buffer;
	char name[64];
};

/* If the descriptor was given out, learns where its position is now. */
void image_take_position(struct image *image);
/* Writes the buffer out. Returns 0 or a failure. */
int image_flush(struct image *image);
