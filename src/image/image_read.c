/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading of image files. All of it is hostile input: a length is compared with the limit and with the rest of the
 * file before memory is taken for it, the nesting is measured before the recursive decoder sees the message, and what
 * does not unpack (a missing required field too) ends the reading with the place where it stands.
 */
#include "image/image_file.h"

#include <string.h>

#include "base/fd.h"

static int truncated(struct image *image, off_t offset, size_t wanted)
{
	return image->error =
		       fail(image->failure, ENODATA, "image-truncated", image->name,
			    "the file was cut off: copy the images again or dump again",
			    "the file ends in the middle of the %zu bytes at offset %lld", wanted, (long long)offset);
}

/* Reads up to @size bytes of the file. Returns the count, less only at the end of the file, or a failure. */
static ssize_t read_some(struct image *image, void *data, size_t size)
{
	size_t done = 0;

	image_take_position(image);
	while (done < size) {
		size_t have = image->end - image->start;
		if (have) {
			size_t part = have < size - done ? have : size - done;
			memcpy((char *)data + done, image->buffer + image->start, part);
			image->start += part;
			done += part;
			continue;
		}
		bool direct = size - done >= IMAGE_BUFFER_BYTES;
		ssize_t count = direct ? read(image->fd, (char *)data + done, size - done)
				       : read(image->fd, image->buffer, IMAGE_BUFFER_BYTES);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return image->error = fail_errno(image->failure, errno, "image-read", image->name, NULL,
							 "cannot be read");
		if (!count)
			break;
		image->offset += count;
		image->start = 0;
		image->end = direct ? 0 : count;
		done += direct ? count : 0;
	}
	return done;
}

int image_read_raw(struct image *image, void *data, size_t size)
{
	if (image->error)
		return image->error;
	off_t offset = image_offset(image);
	if (image->size_bytes >= 0 && (offset > image->size_bytes || size > (size_t)(image->size_bytes - offset)))
		return truncated(image, offset, size);
	ssize_t count = read_some(image, data, size);
	if (count < 0)
		return count;
	return (size_t)count == size ? 0 : truncated(image, offset, size);
}

/* Reads a varint of at most ten bytes. Returns the number of bytes, 0 if there is none. */
static size_t varint(const uint8_t *data, size_t size, uint64_t *ret_value)
{
	uint64_t value = 0;

	for (size_t i = 0; i < size && i < 10; i++) {
		value |= (uint64_t)(data[i] & 0x7f) << (7 * i);
		if (!(data[i] & 0x80)) {
			*ret_value = value;
			return i + 1;
		}
	}
	return 0;
}

/*
 * Whether the messages in the message nest no deeper than the limit; protobuf-c itself recurses without one. What is
 * malformed ends the search here and is found again by the unpacking.
 */
static bool nests_within(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size, int depth)
{
	if (depth == IMAGE_MESSAGE_DEPTH_LIMIT)
		return false;
	for (size_t at = 0, used; at < size;) {
		uint64_t tag, length;
		used = varint(data + at, size - at, &tag);
		if (!used)
			return true;
		at += used;
		switch (tag & 7) {
		case 0:
			used = varint(data + at, size - at, &length);
			if (!used)
				return true;
			at += used;
			break;
		case 1:
			at += 8;
			break;
		case 5:
			at += 4;
			break;
		case 2: {
			used = varint(data + at, size - at, &length);
			if (!used || length > size - at - used)
				return true;
			at += used;
			const ProtobufCFieldDescriptor *field =
				tag >> 3 > UINT32_MAX ? NULL
						      : protobuf_c_message_descriptor_get_field(descriptor, tag >> 3);
			if (field && field->type == PROTOBUF_C_TYPE_MESSAGE &&
			    !nests_within(field->descriptor, data + at, length, depth + 1))
				return false;
			at += length;
			break;
		}
		default:
			return true;
		}
	}
	return true;
}

static int unpack(struct image *image, const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size,
		  off_t offset, ProtobufCMessage **ret_message)
{
	const char *hint = "the file is damaged or of another version";

	if (!nests_within(descriptor, data, size, 0))
		return image->error = fail(image->failure, EINVAL, "image-message", image->name, hint,
					   "the %s at offset %lld nests deeper than %d levels", descriptor->name,
					   (long long)offset, IMAGE_MESSAGE_DEPTH_LIMIT);
	*ret_message = protobuf_c_message_unpack(descriptor, NULL, size, data);
	if (*ret_message)
		return 0;
	return image->error =
		       fail(image->failure, EINVAL, "image-message", image->name, hint,
			    "the %zu bytes at offset %lld are not a %s", size, (long long)offset, descriptor->name);
}

/* The length before a message. Returns 1, 0 at the end of the file, or a failure. */
static int read_length(struct image *image, uint32_t *ret_length)
{
	off_t offset = image_offset(image);
	ssize_t count = read_some(image, ret_length, sizeof(*ret_length));

	if (count <= 0)
		return count;
	if (count != sizeof(*ret_length))
		return truncated(image, offset, sizeof(*ret_length));
	if (*ret_length > IMAGE_MESSAGE_LIMIT_BYTES)
		return image->error =
			       fail(image->failure, EINVAL, "image-message-length", image->name, "the file is damaged",
				    "a message of %u bytes at offset %lld is longer than the limit of %u", *ret_length,
				    (long long)offset, IMAGE_MESSAGE_LIMIT_BYTES);
	return 1;
}

int image_read_as(struct image *image, const ProtobufCMessageDescriptor *descriptor, ProtobufCMessage **ret_message)
{
	uint32_t length;

	if (image->error)
		return image->error;
	int result = read_length(image, &length);
	if (result <= 0)
		return result;
	off_t offset = image_offset(image);
	if (image->size_bytes >= 0 && (offset > image->size_bytes || length > image->size_bytes - offset))
		return truncated(image, offset, length);
	ProtobufCMessage *message;
	/* The usual small message is unpacked where it lies. */
	if (image->end - image->start >= length) {
		image->start += length;
		result = unpack(image, descriptor, image->buffer + image->start - length, length, offset, &message);
	} else {
		_cleanup_free_ uint8_t *packed = xcalloc(1, length);
		result = image_read_raw(image, packed, length);
		if (!result)
			result = unpack(image, descriptor, packed, length, offset, &message);
	}
	if (result)
		return result;
	*ret_message = message;
	return 1;
}

int image_read(struct image *image, ProtobufCMessage **ret_message)
{
	const struct image_description *description = &image_descriptions[image->kind];
	const ProtobufCMessageDescriptor *descriptor = description->message;
	bool first = image_offset(image) == image->header_bytes;

	if (!descriptor)
		return image->error = fail(image->failure, EINVAL, "image-message", image->name, NULL,
					   "there are no messages in this kind of file");
	if (description->payload == IMAGE_PAYLOAD_PAGEMAP && first)
		descriptor = &pagemap_head__descriptor;
	/* Behind a ghost file's entry stand its chunks, or bytes that no one may take for a message. */
	if (description->payload == IMAGE_PAYLOAD_GHOST && !first) {
		if (!image->ghost_chunks)
			return 0;
		descriptor = &ghost_chunk_entry__descriptor;
	}
	int result = image_read_as(image, descriptor, ret_message);
	if (result > 0 && descriptor == &ghost_file_entry__descriptor) {
		const GhostFileEntry *entry = (const GhostFileEntry *)*ret_message;
		image->ghost_chunks = entry->has_chunks && entry->chunks;
	}
	return result;
}

int image_read_one(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id,
		   ProtobufCMessage **ret_message)
{
	struct image *image;
	char name[64];

	image_name(kind, id, name, sizeof(name));
	int result = image_open(dirfd, failure, kind, id, &image);
	if (result == -ENOENT && !failure_is_set(failure))
		return fail(failure, ENOENT, "image-missing", name, "is this the directory of a complete dump?",
			    "there is no such image");
	if (result)
		return result;
	result = image_read(image, ret_message);
	image_close(&image);
	if (!result)
		return fail(failure, ENODATA, "image-truncated", name, "the file was cut off: dump again",
			    "there is no entry in it");
	return result < 0 ? result : 0;
}

void image_message_free(ProtobufCMessage *message)
{
	protobuf_c_message_free_unpacked(message, NULL);
}
