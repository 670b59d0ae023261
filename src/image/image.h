/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image files: the registry, framing, reading and writing (shared/formats describes the format).
 *
 * A file is: [head magic u32] [magic u32] { u32 length, protobuf message, [raw payload] }*. All little-endian.
 * Everything that is read is hostile: lengths are bounded, messages must unpack, and the message of a file is
 * always of the type that the registry names.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

/* IMAGE_INVENTORY, IMAGE_FDINFO, … in the order of image_kinds.def */
enum image_kind {
#define IMAGE_KIND(name, pattern, head, magic, message, payload) IMAGE_##name,
#include "image/image_kinds.def"
#undef IMAGE_KIND
	IMAGE_KIND_COUNT,
};

/* What follows each message of a file. */
enum image_payload {
	IMAGE_PAYLOAD_NONE,
	IMAGE_PAYLOAD_PAGEMAP,    /* first message is pagemap_head, the others pagemap_entry */
	IMAGE_PAYLOAD_PIPE,       /* pipe_data_entry.bytes bytes */
	IMAGE_PAYLOAD_SK_QUEUE,   /* sk_packet_entry.length bytes */
	IMAGE_PAYLOAD_TCP_STREAM, /* inq_len + outq_len bytes */
	IMAGE_PAYLOAD_GHOST,      /* chunks, or the rest of the file */
	IMAGE_PAYLOAD_IPC_SHM,
	IMAGE_PAYLOAD_IPC_MSG,
	IMAGE_PAYLOAD_IPC_SEM,
	IMAGE_PAYLOAD_BPFMAP,
};

struct image_description {
	const char *name;    /* "CORE", as decoders show it */
	const char *pattern; /* "core-%u.img" */
	uint32_t head_magic; /* 0 = the file has none */
	uint32_t magic;      /* 0 = raw file without framing */
	const ProtobufCMessageDescriptor *message;
	enum image_payload payload;
};

extern const struct image_description image_descriptions[IMAGE_KIND_COUNT];

/* Versions of inventory_entry.img_version. */
#define IMAGE_VERSION_1_1 2
#define IMAGE_VERSION_SHARED_PAGES 3 /* pagemap entries may point to another process's pages */

/* pagemap_entry.flags */
#define PAGEMAP_IN_PARENT (1u << 0)
#define PAGEMAP_LAZY (1u << 1)
#define PAGEMAP_PRESENT (1u << 2)
#define PAGEMAP_HUGE (1u << 9)   /* the range was backed by huge pages; older readers ignore the bit */
#define PAGEMAP_SHARED (1u << 8) /* the pages are those of process source_pid at source_vaddr, in its own pagemap */

struct image; /* one open image file */

/*
 * Creates (truncates) an image file below @dirfd and writes its magics. @id fills the number in the file's name.
 * Output is buffered; errors are kept and reported by image_close(). Returns 0 or a failure.
 */
int image_create(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id, struct image **ret_image);
/* Appends one message. The message's descriptor is checked against the registry (a bug if it differs). */
int image_write(struct image *image, const ProtobufCMessage *message);
/* Appends raw payload. */
int image_write_raw(struct image *image, const void *data, size_t size);
/* Appends @size bytes from @fd's current position (a pipe or file). */
int image_write_from_fd(struct image *image, int fd, size_t size);
/* Flushes and closes. Returns 0 or the first error of any call on this image. *image becomes NULL. */
int image_close(struct image **image);

/*
 * Opens an image file and checks its magics. Returns 0, -ENOENT without a recorded failure if there is no such
 * file, or a failure.
 */
int image_open(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id, struct image **ret_image);
/*
 * Reads the next message into a new object that the caller frees with image_message_free().
 * Returns 1, 0 at the end of the file, or a failure (truncated, too long, does not unpack).
 */
int image_read(struct image *image, ProtobufCMessage **ret_message);
/* Reads exactly one message from a file that holds one. Returns 0 or a failure. */
int image_read_one(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id,
		   ProtobufCMessage **ret_message);
/* Reads @size payload bytes. Returns 0 or a failure. */
int image_read_raw(struct image *image, void *data, size_t size);
/* Position of the next unread or unwritten byte in the file, and the descriptor: for sendfile of large payloads. */
off_t image_offset(const struct image *image);
/* Flushes what is buffered and returns the descriptor, which stays the image's. */
int image_fd(struct image *image);
/* Skips or sets the position. */
int image_seek(struct image *image, off_t offset);
void image_message_free(ProtobufCMessage *message);

/* The file's name, "core-12.img". Returns @buffer. */
char *image_name(enum image_kind kind, uint64_t id, char *buffer, size_t size);

/* ---- files by name, and what tools that do not know the kind need ---- */

/* Like image_create() and image_open() for a path of any name. */
int image_create_at(int dirfd, const char *path, struct failure *failure, enum image_kind kind,
		    struct image **ret_image);
int image_open_at(int dirfd, const char *path, struct failure *failure, enum image_kind kind, struct image **ret_image);
/* Opens a file of whatever kind its magics tell. Returns 0, -ENOENT without a recorded failure, or a failure. */
int image_open_any(int dirfd, const char *path, struct failure *failure, struct image **ret_image);
/* The kind whose name pattern the last component of @path fits. Returns 0 or -ENOENT. */
int image_kind_of_name(const char *path, enum image_kind *ret_kind);
/* Like image_read() for a message that is not the registry's: ipc_msg behind ipc_msg_entry. */
int image_read_as(struct image *image, const ProtobufCMessageDescriptor *descriptor, ProtobufCMessage **ret_message);
enum image_kind image_kind(const struct image *image);
/* The name of the open file, which lives as long as the image. */
const char *image_file_name(const struct image *image);
