/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing of image files: a buffer in front of a descriptor. The first error stays with the image, later calls do
 * nothing, and image_close() tells it; so a writer of many messages needs one check.
 */
#include "image/image_file.h"

#include <fcntl.h>
#include <string.h>

#include "base/fd.h"

static int write_error(struct image *image, int error)
{
	image->error = fail_errno(image->failure, error, "image-write", image->name,
				  "the images directory needs space and must be writable", "cannot be written");
	return image->error;
}

int image_flush(struct image *image)
{
	if (image->error)
		return image->error;
	image_take_position(image);
	if (!image->end)
		return 0;
	int error = write_full(image->fd, image->buffer, image->end);
	if (error)
		return write_error(image, error);
	image->offset += image->end;
	image->end = 0;
	return 0;
}

/* A place for @size bytes in the buffer, or NULL when they do not fit even in an empty one. */
static uint8_t *reserve(struct image *image, size_t size)
{
	if (size > IMAGE_BUFFER_BYTES - image->end && image_flush(image) < 0)
		return NULL;
	return size <= IMAGE_BUFFER_BYTES - image->end ? image->buffer + image->end : NULL;
}

int image_write_raw(struct image *image, const void *data, size_t size)
{
	if (image->error)
		return image->error;
	image_take_position(image);
	uint8_t *place = reserve(image, size);
	if (place) {
		memcpy(place, data, size);
		image->end += size;
		return 0;
	}
	if (image->error)
		return image->error;
	int error = write_full(image->fd, data, size);
	if (error)
		return write_error(image, error);
	image->offset += size;
	return 0;
}

/* The messages that may stand in a file of this kind: the registry's, and those that a payload brings along. */
static bool message_belongs(const struct image *image, const ProtobufCMessageDescriptor *message)
{
	const struct image_description *description = &image_descriptions[image->kind];

	if (message == description->message)
		return true;
	switch (description->payload) {
	case IMAGE_PAYLOAD_PAGEMAP:
		return message == &pagemap_head__descriptor;
	case IMAGE_PAYLOAD_GHOST:
		return message == &ghost_chunk_entry__descriptor;
	case IMAGE_PAYLOAD_IPC_MSG:
		return message == &ipc_msg__descriptor;
	default:
		return false;
	}
}

int image_write(struct image *image, const ProtobufCMessage *message)
{
	if (image->error)
		return image->error;
	if (!message_belongs(image, message->descriptor))
		return image->error =
			       fail(image->failure, EINVAL, "image-message", image->name, NULL,
				    "a message of type %s does not belong into this image", message->descriptor->name);
	size_t size = protobuf_c_message_get_packed_size(message);
	if (size > IMAGE_MESSAGE_LIMIT_BYTES)
		return image->error = fail(image->failure, EFBIG, "image-message-length", image->name, NULL,
					   "a message of %zu bytes is longer than the limit of %u", size,
					   IMAGE_MESSAGE_LIMIT_BYTES);
	uint32_t length = size;
	if (image_write_raw(image, &length, sizeof(length)) < 0)
		return image->error;
	uint8_t *place = reserve(image, size);
	if (place) {
		protobuf_c_message_pack(message, place);
		image->end += size;
		return 0;
	}
	_cleanup_free_ uint8_t *packed = xcalloc(1, size);
	protobuf_c_message_pack(message, packed);
	return image_write_raw(image, packed, size);
}

/* Moves bytes inside the kernel. Returns the count, 0 at the end of the input, or -errno. */
static ssize_t move_in_kernel(int from, int to, size_t size)
{
	ssize_t count;

	do {
		count = splice(from, NULL, to, NULL, size, SPLICE_F_MOVE);
		if (count < 0 && errno == EINVAL)
			count = copy_file_range(from, NULL, to, NULL, size, 0);
	} while (count < 0 && errno == EINTR);
	return count < 0 ? -errno : count;
}

static int input_error(struct image *image, int error, size_t missing)
{
	if (error == -ENODATA)
		image->error = fail(image->failure, ENODATA, "image-input-short", image->name, NULL,
				    "the data to be saved ended %zu bytes early", missing);
	else
		image->error = fail_errno(image->failure, error, "image-input", image->name, NULL,
					  "the data to be saved cannot be read");
	return image->error;
}

static int copy_through_buffer(struct image *image, int fd, size_t size)
{
	while (size) {
		if (image->end == IMAGE_BUFFER_BYTES && image_flush(image) < 0)
			return image->error;
		size_t room = IMAGE_BUFFER_BYTES - image->end;
		size_t part = size < room ? size : room;
		int error = read_full(fd, image->buffer + image->end, part);
		if (error)
			return input_error(image, error, size);
		image->end += part;
		size -= part;
	}
	return 0;
}

int image_write_from_fd(struct image *image, int fd, size_t size)
{
	if (image->error)
		return image->error;
	image_take_position(image);
	if (size <= IMAGE_BUFFER_BYTES - image->end)
		return copy_through_buffer(image, fd, size);
	if (image_flush(image) < 0)
		return image->error;
	while (size) {
		ssize_t moved = move_in_kernel(fd, image->fd, size);
		/* Descriptors that the kernel cannot connect, and errors too, are left to read() and write(). */
		if (moved < 0)
			return copy_through_buffer(image, fd, size);
		if (!moved)
			return input_error(image, -ENODATA, size);
		image->offset += moved;
		size -= moved;
	}
	return 0;
}
