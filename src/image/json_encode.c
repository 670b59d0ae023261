/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON to image. The text is written by people and their scripts, so every failure names the message and field. A
 * field that the schema does not know, a number that does not fit and a missing required field are refused: a message
 * that lost something silently would restore as something else.
 */
#include "image/json.h"

#include <string.h>

#include "base/fd.h"
#include "image/display.h"
#include "image/image_file.h"
#include "image/image_schema.h"
#include "image/json_writer.h"

static int wrong_value(struct failure *failure, const ProtobufCMessageDescriptor *message, const char *field,
		       const char *wanted)
{
	return fail(failure, EINVAL, "json-value", NULL, "compare with what decoding of an image shows",
		    "field %s of %s must be %s", field, message->name, wanted);
}

/* What the value of one field is converted with. */
struct conversion {
	struct failure *failure;
	const ProtobufCMessageDescriptor *message;
	const ProtobufCFieldDescriptor *field;
	const struct display *display;
};

static int build_message(struct failure *failure, const ProtobufCMessageDescriptor *descriptor, const json_t *json,
			 const char *payload_key, ProtobufCMessage **ret_message);

static int convert_bits(const struct conversion *conversion, const json_t *json, uint64_t *ret_value)
{
	if (json_is_integer(json)) {
		*ret_value = json_integer_value(json);
		return 0;
	}
	if (json_is_boolean(json)) {
		*ret_value = json_is_true(json);
		return 0;
	}
	if (json_is_string(json) && !display_parse(conversion->display, json_string_value(json), ret_value))
		return 0;
	return wrong_value(conversion->failure, conversion->message, conversion->field->name, "a number");
}

static int convert_32(const struct conversion *conversion, const json_t *json, bool is_signed, uint32_t *ret_value)
{
	uint64_t bits;
	int error = convert_bits(conversion, json, &bits);

	if (error)
		return error;
	bool fits = is_signed ? (int64_t)bits >= INT32_MIN && (int64_t)bits <= INT32_MAX : bits <= UINT32_MAX;
	if (!fits)
		return wrong_value(conversion->failure, conversion->message, conversion->field->name,
				   "a number of 32 bits");
	*ret_value = bits;
	return 0;
}

static int convert_64(const struct conversion *conversion, const json_t *json, bool is_signed, uint64_t *ret_value)
{
	uint64_t bits;
	int error = convert_bits(conversion, json, &bits);

	if (error)
		return error;
	if (!is_signed && json_is_integer(json) && json_integer_value(json) < 0)
		return wrong_value(conversion->failure, conversion->message, conversion->field->name,
				   "a number from 0 on");
	*ret_value = bits;
	return 0;
}

static int convert_enum(const struct conversion *conversion, const json_t *json, int *ret_value)
{
	const ProtobufCEnumValue *name = NULL;

	if (json_is_integer(json))
		return convert_32(conversion, json, true, (uint32_t *)ret_value);
	if (json_is_string(json))
		name = protobuf_c_enum_descriptor_get_value_by_name(conversion->field->descriptor,
								    json_string_value(json));
	if (!name)
		return wrong_value(conversion->failure, conversion->message, conversion->field->name,
				   "a name of its enumeration");
	*ret_value = name->value;
	return 0;
}

static int convert_bytes(const struct conversion *conversion, const json_t *json, ProtobufCBinaryData *ret_value)
{
	const char *text = json_string_value(json);
	bool quoted = conversion->display->form == DISPLAY_QUOTED;

	if (!text)
		return wrong_value(conversion->failure, conversion->message, conversion->field->name, "a string");
	int error = quoted ? quoted_decode(text, &ret_value->data, &ret_value->len)
			   : base64_decode(text, &ret_value->data, &ret_value->len);
	if (error)
		return wrong_value(conversion->failure, conversion->message, conversion->field->name,
				   quoted ? "quoted-printable text" : "base64");
	return 0;
}

static int convert_string(const struct conversion *conversion, const json_t *json, char **ret_value)
{
	if (!json_is_string(json))
		return wrong_value(conversion->failure, conversion->message, conversion->field->name, "a string");
	*ret_value = xstrdup(json_string_value(json));
	return 0;
}

static int convert_float(const struct conversion *conversion, const json_t *json, double *ret_value)
{
	if (!json_is_number(json))
		return wrong_value(conversion->failure, conversion->message, conversion->field->name, "a number");
	*ret_value = json_number_value(json);
	return 0;
}

/* Stores one converted value at @to. */
static int convert(const struct conversion *conversion, const json_t *json, void *to)
{
	double number;
	int error;

	switch (conversion->field->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return convert_32(conversion, json, true, to);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
	case PROTOBUF_C_TYPE_BOOL:
		return convert_32(conversion, json, false, to);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return convert_64(conversion, json, true, to);
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return convert_64(conversion, json, false, to);
	case PROTOBUF_C_TYPE_FLOAT:
		error = convert_float(conversion, json, &number);
		if (!error)
			*(float *)to = number;
		return error;
	case PROTOBUF_C_TYPE_DOUBLE:
		return convert_float(conversion, json, to);
	case PROTOBUF_C_TYPE_ENUM:
		return convert_enum(conversion, json, to);
	case PROTOBUF_C_TYPE_STRING:
		return convert_string(conversion, json, to);
	case PROTOBUF_C_TYPE_BYTES:
		return convert_bytes(conversion, json, to);
	case PROTOBUF_C_TYPE_MESSAGE:
		return build_message(conversion->failure, conversion->field->descriptor, json, NULL, to);
	}
	return -EINVAL;
}

/* An address is one string for one or four words. Returns the number of words, 0 if it is not one. */
static size_t convert_address(const struct conversion *conversion, const json_t *list, uint32_t words[4])
{
	if (conversion->display->form != DISPLAY_ADDRESS || json_array_size(list) != 1 ||
	    !json_is_string(json_array_get(list, 0)))
		return 0;
	int count = display_parse_address(json_string_value(json_array_get(list, 0)), words);
	return count > 0 ? count : 0;
}

static int set_repeated(const struct conversion *conversion, const json_t *list, ProtobufCMessage *message)
{
	const ProtobufCFieldDescriptor *field = conversion->field;
	size_t *count = (size_t *)((char *)message + field->quantifier_offset);
	char **values = (char **)((char *)message + field->offset);
	uint32_t words[4];

	if (!json_is_array(list))
		return wrong_value(conversion->failure, conversion->message, field->name, "a list");
	size_t length = convert_address(conversion, list, words);
	if (length) {
		*values = xmemdup(words, length * sizeof(*words));
		*count = length;
		return 0;
	}
	length = json_array_size(list);
	if (!length)
		return 0;
	*values = xcalloc(length, json_element_bytes(field));
	/* The count grows with the list, so that a failure leaves a message that can be freed. */
	for (size_t i = 0; i < length; i++) {
		int error = convert(conversion, json_array_get(list, i), *values + i * json_element_bytes(field));
		if (error)
			return error;
		*count = i + 1;
	}
	return 0;
}

static int set_field(const struct conversion *conversion, const json_t *json, ProtobufCMessage *message)
{
	const ProtobufCFieldDescriptor *field = conversion->field;

	if (field->label == PROTOBUF_C_LABEL_REPEATED)
		return set_repeated(conversion, json, message);
	int error = convert(conversion, json, (char *)message + field->offset);
	if (error)
		return error;
	bool has_pointer = field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE;
	if (field->label == PROTOBUF_C_LABEL_OPTIONAL && !has_pointer)
		*(protobuf_c_boolean *)((char *)message + field->quantifier_offset) = true;
	return 0;
}

static int set_fields(struct failure *failure, const json_t *json, ProtobufCMessage *message, const char *payload_key)
{
	const ProtobufCMessageDescriptor *descriptor = message->descriptor;
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)json, key, value)
	{
		if (payload_key && !strcmp(key, payload_key))
			continue;
		const ProtobufCFieldDescriptor *field =
			protobuf_c_message_descriptor_get_field_by_name(descriptor, key);
		if (!field)
			return fail(failure, EINVAL, "json-field", NULL, NULL, "%s has no field %s", descriptor->name,
				    key);
		struct conversion conversion = {failure, descriptor, field, display_of(descriptor->name, key)};
		int error = set_field(&conversion, value, message);
		if (error)
			return error;
	}
	for (unsigned int i = 0; i < descriptor->n_fields; i++)
		if (descriptor->fields[i].label == PROTOBUF_C_LABEL_REQUIRED &&
		    !json_object_get(json, descriptor->fields[i].name))
			return fail(failure, EINVAL, "json-field", NULL, NULL, "%s lacks its field %s",
				    descriptor->name, descriptor->fields[i].name);
	return 0;
}

static int build_message(struct failure *failure, const ProtobufCMessageDescriptor *descriptor, const json_t *json,
			 const char *payload_key, ProtobufCMessage **ret_message)
{
	if (!json_is_object(json))
		return fail(failure, EINVAL, "json-value", NULL, NULL, "%s must be an object", descriptor->name);
	ProtobufCMessage *message = xcalloc(1, descriptor->sizeof_message);
	descriptor->message_init(message);
	int error = set_fields(failure, json, message, payload_key);
	if (error) {
		image_message_free(message);
		return error;
	}
	*ret_message = message;
	return 0;
}

/* Appends base64 payload, which must have @size bytes (-1 = any number), and fills up to a multiple of @unit. */
static int append_payload(struct image *image, const json_t *json, int64_t size, unsigned int unit)
{
	_cleanup_free_ uint8_t *data = NULL;
	size_t length = 0;
	uint8_t padding[8] = {0};

	if (!json_is_string(json) || base64_decode(json_string_value(json), &data, &length) < 0)
		return fail(image->failure, EINVAL, "json-payload", NULL, NULL, "the payload must be base64");
	if (size >= 0 && length != (uint64_t)size)
		return fail(image->failure, EINVAL, "json-payload", NULL, NULL,
			    "the payload has %zu bytes where its message says %lld", length, (long long)size);
	int error = image_write_raw(image, data, length);
	return error ? error : image_write_raw(image, padding, -length & (unit - 1));
}

static int append_semaphores(struct image *image, const json_t *list, uint32_t count)
{
	uint16_t zero[4] = {0};

	if (json_array_size(list) != count)
		return fail(image->failure, EINVAL, "json-payload", NULL, NULL, "a set of %u semaphores has %zu values",
			    count, json_array_size(list));
	for (uint32_t i = 0; i < count; i++) {
		uint16_t value = json_integer_value(json_array_get(list, i));
		image_write_raw(image, &value, sizeof(value));
	}
	return image_write_raw(image, zero, sizeof(zero[0]) * (-count & 3));
}

static int append_queue(struct image *image, const json_t *list, uint32_t count)
{
	if (json_array_size(list) != 2 * (uint64_t)count)
		return fail(image->failure, EINVAL, "json-payload", NULL, NULL,
			    "a queue of %u messages needs a list of as many messages and texts", count);
	for (size_t i = 0; i < json_array_size(list); i += 2) {
		ProtobufCMessage *message = NULL;
		int error =
			build_message(image->failure, &ipc_msg__descriptor, json_array_get(list, i), NULL, &message);
		if (error)
			return error;
		error = image_write(image, message);
		uint32_t size = ((IpcMsg *)message)->msize;
		image_message_free(message);
		if (!error)
			error = append_payload(image, json_array_get(list, i + 1), size, 8);
		if (error)
			return error;
	}
	return 0;
}

static int append_tcp_queues(struct image *image, const json_t *extra, const TcpStreamEntry *entry)
{
	int error = append_payload(image, json_object_get(extra, "inq"), entry->inq_len, 1);

	return error ? error : append_payload(image, json_object_get(extra, "outq"), entry->outq_len, 1);
}

static int append_ghost(struct image *image, const json_t *extra, const ProtobufCMessage *message)
{
	if (message->descriptor == &ghost_chunk_entry__descriptor)
		return append_payload(image, extra, ((const GhostChunkEntry *)message)->len, 1);
	return extra ? append_payload(image, extra, -1, 1) : 0;
}

static int append_extra(struct image *image, const json_t *extra, const ProtobufCMessage *message)
{
	switch (image_descriptions[image->kind].payload) {
	case IMAGE_PAYLOAD_PIPE:
		return append_payload(image, extra, ((const PipeDataEntry *)message)->bytes, 1);
	case IMAGE_PAYLOAD_SK_QUEUE:
		return append_payload(image, extra, ((const SkPacketEntry *)message)->length, 1);
	case IMAGE_PAYLOAD_TCP_STREAM:
		return append_tcp_queues(image, extra, (const TcpStreamEntry *)message);
	case IMAGE_PAYLOAD_GHOST:
		return append_ghost(image, extra, message);
	case IMAGE_PAYLOAD_IPC_SHM:
		return extra ? append_payload(image, extra, ((const IpcShmEntry *)message)->size, 4) : 0;
	case IMAGE_PAYLOAD_IPC_SEM:
		return append_semaphores(image, extra, ((const IpcSemEntry *)message)->nsems);
	case IMAGE_PAYLOAD_IPC_MSG:
		return append_queue(image, extra, ((const IpcMsgEntry *)message)->qnum);
	case IMAGE_PAYLOAD_BPFMAP: {
		const BpfmapDataEntry *entry = (const BpfmapDataEntry *)message;
		return append_payload(image, extra, (int64_t)entry->keys_bytes + entry->values_bytes, 1);
	}
	default:
		return 0;
	}
}

static int append_entry(struct image *image, const json_t *json, bool first)
{
	const struct image_description *description = &image_descriptions[image->kind];
	const ProtobufCMessageDescriptor *descriptor = description->message;
	ProtobufCMessage *message = NULL;

	if (description->payload == IMAGE_PAYLOAD_PAGEMAP && first)
		descriptor = &pagemap_head__descriptor;
	if (description->payload == IMAGE_PAYLOAD_GHOST && !first)
		descriptor = &ghost_chunk_entry__descriptor;
	bool has_payload = description->payload != IMAGE_PAYLOAD_NONE && description->payload != IMAGE_PAYLOAD_PAGEMAP;
	int error = build_message(image->failure, descriptor, json, has_payload ? "extra" : NULL, &message);
	if (error)
		return error;
	error = image_write(image, message);
	if (!error)
		error = append_extra(image, json_object_get(json, "extra"), message);
	image_message_free(message);
	return error;
}

int json_image_kind(const json_t *json, const char *path, struct failure *failure, enum image_kind *ret_kind)
{
	const char *magic = json_string_value(json_object_get(json, "magic"));
	enum image_kind named = IMAGE_KIND_COUNT;

	if (!magic)
		return fail(failure, EINVAL, "json-magic", NULL,
			    "an image decodes to {\"magic\": ..., \"entries\": [...]}",
			    "there is no \"magic\" in the JSON");
	for (int kind = 0; kind < IMAGE_KIND_COUNT; kind++) {
		if (strcmp(image_descriptions[kind].name, magic) || !image_descriptions[kind].message)
			continue;
		/* pagemap-shmem-5.img has the magics and the word of pagemap-5.img, its own name says more. */
		if (path && !image_kind_of_name(path, &named) &&
		    image_descriptions[named].magic == image_descriptions[kind].magic)
			kind = named;
		*ret_kind = kind;
		return 0;
	}
	return fail(failure, EINVAL, "json-magic", NULL, NULL, "there is no image with the magic %s", magic);
}

int image_encode(const json_t *json, int dirfd, const char *path, struct failure *failure)
{
	const json_t *entries = json_object_get(json, "entries");
	enum image_kind kind = IMAGE_KIND_COUNT;
	struct image *image = NULL;
	int error = json_image_kind(json, path, failure, &kind);

	if (error)
		return error;
	if (!json_is_array(entries))
		return fail(failure, EINVAL, "json-entries", NULL, NULL, "\"entries\" must be a list");
	error = image_create_at(dirfd, path, failure, kind, &image);
	for (size_t i = 0; !error && i < json_array_size(entries); i++) {
		error = append_entry(image, json_array_get(entries, i), !i);
		if (error)
			fail_in(failure, "entry %zu", i);
	}
	int close_error = image_close(&image);
	return error ? error : close_error;
}

/* Puts quotes around integers that jansson cannot hold. Returns new text, which the caller frees. */
static char *quote_large_numbers(const char *text, size_t length, size_t *ret_length)
{
	char *quoted = xcalloc(length + 1, 2), *to = quoted;
	bool in_string = false;

	for (size_t i = 0; i < length;) {
		size_t digits = in_string ? 0 : strspn(text + i, "0123456789");
		bool is_fraction = digits && i + digits < length && strchr(".eE", text[i + digits]);
		bool is_large = digits > 19 || (digits == 19 && strncmp(text + i, "9223372036854775807", 19) > 0);
		bool quote = is_large && !is_fraction && (!i || !strchr(".-+eE", text[i - 1]));
		if (quote)
			*to++ = '"';
		size_t part = digits ? digits : in_string && text[i] == '\\' && i + 1 < length ? 2 : 1;
		if (!digits && text[i] == '"')
			in_string = !in_string;
		memcpy(to, text + i, part);
		to += part;
		i += part;
		if (quote)
			*to++ = '"';
	}
	*ret_length = to - quoted;
	return quoted;
}

int json_read(FILE *in, const char *name, struct failure *failure, json_t **ret_json)
{
	_cleanup_free_ char *text = NULL;
	size_t length = 0, capacity = 0, quoted_length;
	json_error_t cause;

	do {
		if (length + 1 >= capacity) {
			capacity = capacity ? capacity * 2 : 65536;
			text = xrealloc_array(text, capacity, 1);
		}
		length += fread(text + length, 1, capacity - length - 1, in);
	} while (!feof(in) && !ferror(in));
	if (ferror(in))
		return fail_errno(failure, EIO, "json-read", name, NULL, "cannot be read");
	text[length] = '\0';
	_cleanup_free_ char *quoted = quote_large_numbers(text, length, &quoted_length);
	*ret_json = json_loadb(quoted, quoted_length, JSON_REJECT_DUPLICATES, &cause);
	if (!*ret_json)
		return fail(failure, EINVAL, "json-syntax", name, NULL, "line %d: %s", cause.line, cause.text);
	return 0;
}
