/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image to JSON. Messages are walked by their descriptors; what is particular is only the payload behind some of
 * them, which has no description in the schema: its length comes from the message, from the file's end, or (messages
 * of System V queues) from further messages inside of it.
 */
#include "image/json.h"

#include <arpa/inet.h>
#include <string.h>

#include "base/fd.h"
#include "image/display.h"
#include "image/image_file.h"
#include "image/image_schema.h"
#include "image/json_writer.h"

static void write_message(struct json_writer *writer, const ProtobufCMessage *message, const struct display *outer);

size_t json_element_bytes(const ProtobufCFieldDescriptor *field)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static void write_bytes(struct json_writer *writer, const struct display *display, const ProtobufCBinaryData *bytes)
{
	_cleanup_free_ char *text = display->form == DISPLAY_QUOTED ? quoted_encode(bytes->data, bytes->len)
								    : base64_encode(bytes->data, bytes->len);
	json_text(writer, text);
}

static void write_number(struct json_writer *writer, const struct display *display, uint64_t value, bool is_signed)
{
	char text[512];

	if (display_number(display, value, text, sizeof(text)))
		json_text(writer, text);
	else if (is_signed)
		json_signed(writer, value);
	else
		json_unsigned(writer, value);
}

static void write_enum(struct json_writer *writer, const ProtobufCFieldDescriptor *field, int value)
{
	const ProtobufCEnumValue *name = protobuf_c_enum_descriptor_get_value(field->descriptor, value);

	if (name)
		json_text(writer, name->name);
	else
		json_signed(writer, value);
}

static void write_value(struct json_writer *writer, const ProtobufCFieldDescriptor *field,
			const struct display *display, const void *value)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		write_number(writer, display, (int64_t) * (const int32_t *)value, true);
		break;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		write_number(writer, display, *(const uint32_t *)value, false);
		break;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		write_number(writer, display, *(const int64_t *)value, true);
		break;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		write_number(writer, display, *(const uint64_t *)value, false);
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		json_double(writer, *(const float *)value);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		json_double(writer, *(const double *)value);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		json_bool(writer, *(const protobuf_c_boolean *)value);
		break;
	case PROTOBUF_C_TYPE_ENUM:
		write_enum(writer, field, *(const int *)value);
		break;
	case PROTOBUF_C_TYPE_STRING:
		json_text(writer, *(char *const *)value);
		break;
	case PROTOBUF_C_TYPE_BYTES:
		write_bytes(writer, display, value);
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		write_message(writer, *(ProtobufCMessage *const *)value, display);
		break;
	}
}

static bool is_present(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
	const char *base = (const char *)message;

	if (field->label == PROTOBUF_C_LABEL_REPEATED)
		return *(const size_t *)(base + field->quantifier_offset) > 0;
	if (field->label == PROTOBUF_C_LABEL_REQUIRED)
		return true;
	if (field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE) {
		const void *pointer = *(void *const *)(base + field->offset);
		return pointer && pointer != field->default_value;
	}
	return *(const protobuf_c_boolean *)(base + field->quantifier_offset);
}

static void write_repeated(struct json_writer *writer, const ProtobufCFieldDescriptor *field,
			   const struct display *display, const char *values, size_t count)
{
	char address[INET6_ADDRSTRLEN];

	json_open(writer, '[');
	if (display->form == DISPLAY_ADDRESS &&
	    display_address((const uint32_t *)values, count, address, sizeof(address)))
		json_text(writer, address);
	else
		for (size_t i = 0; i < count; i++)
			write_value(writer, field, display, values + i * json_element_bytes(field));
	json_close(writer, ']');
}

static void write_fields(struct json_writer *writer, const ProtobufCMessage *message, const struct display *outer)
{
	const ProtobufCMessageDescriptor *descriptor = message->descriptor;
	const char *base = (const char *)message;

	for (unsigned int i = 0; i < descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
		const struct display *display = display_of(descriptor->name, field->name);
		if (!is_present(message, field))
			continue;
		/* Registers are hexadecimal as a whole: the mark stands on the message that holds them. */
		if (display->form == DISPLAY_PLAIN && outer->form == DISPLAY_HEX)
			display = outer;
		json_key(writer, field->name);
		if (field->label == PROTOBUF_C_LABEL_REPEATED)
			write_repeated(writer, field, display, *(char *const *)(base + field->offset),
				       *(const size_t *)(base + field->quantifier_offset));
		else
			write_value(writer, field, display, base + field->offset);
	}
}

static void write_message(struct json_writer *writer, const ProtobufCMessage *message, const struct display *outer)
{
	json_open(writer, '{');
	write_fields(writer, message, outer);
	json_close(writer, '}');
}

/* Reads payload into new memory, of which there is never more than the file has bytes. */
static int read_payload(struct image *image, uint64_t size, uint8_t **ret_data)
{
	off_t offset = image_offset(image);

	if (image->size_bytes < 0)
		return fail(image->failure, ESPIPE, "image-not-a-file", image->name, "copy it into a file",
			    "images with payload can be decoded only from regular files");
	if (offset > image->size_bytes || size > (uint64_t)(image->size_bytes - offset))
		return fail(image->failure, ENODATA, "image-truncated", image->name,
			    "the file was cut off: copy the images again or dump again",
			    "the file ends in the middle of the %llu bytes of payload at offset %lld",
			    (unsigned long long)size, (long long)offset);
	_cleanup_free_ uint8_t *data = xcalloc(size + 1, 1);
	int error = image_read_raw(image, data, size);
	if (error)
		return error;
	*ret_data = TAKE_POINTER(data);
	return 0;
}

static int write_payload(struct json_writer *writer, struct image *image, const char *key, uint64_t size,
			 unsigned int padding)
{
	_cleanup_free_ uint8_t *data = NULL;
	int error = read_payload(image, size + padding, &data);

	if (error)
		return error;
	_cleanup_free_ char *text = base64_encode(data, size);
	if (key)
		json_key(writer, key);
	json_text(writer, text);
	return 0;
}

/* Bytes that the writer put behind @size bytes to end on a multiple of @unit. */
static unsigned int padding_bytes(uint64_t size, unsigned int unit)
{
	return -size & (unit - 1);
}

static int write_semaphores(struct json_writer *writer, struct image *image, uint32_t count)
{
	_cleanup_free_ uint8_t *data = NULL;
	uint64_t size = (uint64_t)count * sizeof(uint16_t);
	int error = read_payload(image, size + padding_bytes(size, 8), &data);

	if (error)
		return error;
	json_key(writer, "extra");
	json_open(writer, '[');
	for (uint32_t i = 0; i < count; i++)
		json_unsigned(writer, data[2 * i] | data[2 * i + 1] << 8);
	json_close(writer, ']');
	return 0;
}

static int write_queue_message(struct json_writer *writer, struct image *image)
{
	static const struct display plain = {.form = DISPLAY_PLAIN};
	ProtobufCMessage *message;
	int result = image_read_as(image, &ipc_msg__descriptor, &message);

	if (!result)
		return fail(image->failure, ENODATA, "image-truncated", image->name, NULL,
			    "the file ends before the last message of the queue");
	if (result < 0)
		return result;
	uint32_t size = ((IpcMsg *)message)->msize;
	write_message(writer, message, &plain);
	image_message_free(message);
	return write_payload(writer, image, NULL, size, padding_bytes(size, 8));
}

static int write_queue(struct json_writer *writer, struct image *image, uint32_t count)
{
	int error = 0;

	json_key(writer, "extra");
	json_open(writer, '[');
	for (uint32_t i = 0; i < count && !error; i++)
		error = write_queue_message(writer, image);
	json_close(writer, ']');
	return error;
}

static int write_tcp_queues(struct json_writer *writer, struct image *image, const TcpStreamEntry *entry)
{
	json_key(writer, "extra");
	json_open(writer, '{');
	int error = write_payload(writer, image, "inq", entry->inq_len, 0);
	if (!error)
		error = write_payload(writer, image, "outq", entry->outq_len, 0);
	json_close(writer, '}');
	return error;
}

static int write_ghost(struct json_writer *writer, struct image *image, const ProtobufCMessage *message)
{
	if (message->descriptor == &ghost_chunk_entry__descriptor)
		return write_payload(writer, image, "extra", ((const GhostChunkEntry *)message)->len, 0);
	if (image->ghost_chunks)
		return 0;
	off_t left = image->size_bytes - image_offset(image);
	return left > 0 ? write_payload(writer, image, "extra", left, 0) : 0;
}

static int write_extra(struct json_writer *writer, struct image *image, const ProtobufCMessage *message)
{
	switch (image_descriptions[image->kind].payload) {
	case IMAGE_PAYLOAD_PIPE:
		return write_payload(writer, image, "extra", ((const PipeDataEntry *)message)->bytes, 0);
	case IMAGE_PAYLOAD_SK_QUEUE:
		return write_payload(writer, image, "extra", ((const SkPacketEntry *)message)->length, 0);
	case IMAGE_PAYLOAD_TCP_STREAM:
		return write_tcp_queues(writer, image, (const TcpStreamEntry *)message);
	case IMAGE_PAYLOAD_GHOST:
		return write_ghost(writer, image, message);
	case IMAGE_PAYLOAD_IPC_SHM: {
		const IpcShmEntry *entry = (const IpcShmEntry *)message;
		if (entry->has_in_pagemaps && entry->in_pagemaps)
			return 0;
		return write_payload(writer, image, "extra", entry->size, padding_bytes(entry->size, 4));
	}
	case IMAGE_PAYLOAD_IPC_SEM:
		return write_semaphores(writer, image, ((const IpcSemEntry *)message)->nsems);
	case IMAGE_PAYLOAD_IPC_MSG:
		return write_queue(writer, image, ((const IpcMsgEntry *)message)->qnum);
	case IMAGE_PAYLOAD_BPFMAP: {
		const BpfmapDataEntry *entry = (const BpfmapDataEntry *)message;
		return write_payload(writer, image, "extra", (uint64_t)entry->keys_bytes + entry->values_bytes, 0);
	}
	default:
		return 0;
	}
}

/* Kinds that share their magics are told apart by nothing else in the file, so they share the name too. */
static const char *shown_name(enum image_kind kind)
{
	for (int other = 0; other < (int)kind; other++)
		if (image_descriptions[other].magic == image_descriptions[kind].magic)
			return image_descriptions[other].name;
	return image_descriptions[kind].name;
}

int image_decode(struct image *image, bool pretty, FILE *out)
{
	static const struct display plain = {.form = DISPLAY_PLAIN};
	struct json_writer writer = {.out = out, .pretty = pretty, .empty = true};
	ProtobufCMessage *message;
	int result;

	json_open(&writer, '{');
	json_key(&writer, "magic");
	json_text(&writer, image->kind == IMAGE_BINFMT_MISC ? "BINFMT_MISC" : shown_name(image->kind));
	json_key(&writer, "entries");
	json_open(&writer, '[');
	while ((result = image_read(image, &message)) > 0) {
		json_open(&writer, '{');
		write_fields(&writer, message, &plain);
		result = write_extra(&writer, image, message);
		json_close(&writer, '}');
		image_message_free(message);
		if (result)
			return result;
	}
	if (result)
		return result;
	json_close(&writer, ']');
	json_close(&writer, '}');
	fputc('\n', out);
	return 0;
}
