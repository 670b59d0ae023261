/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes from the other side of a migration: messages of the control connection, frames of the connections for
 * pages, preambles, and addresses as users write them. The first byte chooses the decoder. What a decoder takes must
 * come out the same when it is encoded and decoded again; what it refuses, it refuses with a reason.
 *
 * With clang's libFuzzer this is an endless search; without it main() runs a bounded number of mutations of messages
 * that are right, the same in every run.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/fd.h"
#include "migrate/door.h"
#include "migrate/endpoint.h"
#include "migrate/frames.h"
#include "migrate/protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DECODE_FRAME = MESSAGE_TYPE_COUNT, DECODE_PREAMBLE, DECODE_ENDPOINT, DECODER_COUNT };

static void refused(const struct failure *failure)
{
	if (!failure_is_set(failure))
		abort();
}

static void try_message(enum message_type type, const uint8_t *data, size_t size)
{
	struct failure failure = {};
	struct message message, again;

	if (message_decode(type, data, size, &failure, &message) < 0) {
		refused(&failure);
		return;
	}
	size_t packed_size = protobuf_c_message_get_packed_size(message.body);
	_cleanup_free_ uint8_t *packed = xcalloc(1, packed_size + 1);
	protobuf_c_message_pack(message.body, packed);
	/* Unknown fields may make it longer than the limit only if it was before. */
	if (packed_size <= size && message_decode(type, packed, packed_size, &failure, &again) < 0)
		abort();
	if (packed_size <= size)
		message_free(&again);
	message_free(&message);
}

static void try_frame(const uint8_t *data, size_t size)
{
	struct failure failure = {};
	struct frame frame;
	uint8_t header[FRAME_HEADER_BYTES];

	if (size < FRAME_HEADER_BYTES)
		return;
	if (frame_decode(data, &failure, &frame) < 0) {
		refused(&failure);
		return;
	}
	frame_encode(&frame, header);
	if (memcmp(header, data, sizeof(header)))
		abort();
	if (frame.type != FRAME_PAGES || frame.payload_bytes > size - FRAME_HEADER_BYTES)
		return;
	/* The checksum is right, so that the decompressors get to see it. */
	_cleanup_free_ uint8_t *payload = xmemdup(data + FRAME_HEADER_BYTES, frame.payload_bytes);
	_cleanup_free_ uint8_t *pages = xcalloc(frame.pages, FRAME_PAGE_BYTES);
	frame.checksum = XXH3_64bits(payload, frame.payload_bytes);
	if (frame_unpack(&frame, payload, pages, &failure) < 0)
		refused(&failure);
}

static void try_preamble(const uint8_t *data, size_t size)
{
	uint8_t id[SESSION_ID_BYTES], parsed[SESSION_ID_BYTES], again[PREAMBLE_BYTES];
	char text[2 * SESSION_ID_BYTES + 1];
	enum preamble_kind kind;

	if (size < PREAMBLE_BYTES || preamble_decode(data, &kind, id) < 0)
		return;
	preamble_encode(kind, id, again);
	session_id_text(id, text);
	if (memcmp(again, data, PREAMBLE_BYTES) || session_id_parse(text, parsed) < 0 || memcmp(parsed, id, sizeof(id)))
		abort();
}

static void try_endpoint(const uint8_t *data, size_t size)
{
	struct endpoint endpoint, same;
	struct failure failure = {};
	char again[400];
	_cleanup_free_ char *text = xcalloc(1, size + 1);

	memcpy(text, data, size);
	if (endpoint_parse_listen(text, &endpoint, &failure) < 0)
		refused(&failure);
	failure_clear(&failure);
	if (endpoint_parse(text, &endpoint, &failure) < 0) {
		refused(&failure);
		return;
	}
	/* It becomes a word of ssh's command line. */
	if (endpoint.host[0] == '-' || endpoint.user[0] == '-' || strpbrk(endpoint.host, " \t\n'\""))
		abort();
	endpoint_text(&endpoint, again, sizeof(again));
	if (endpoint_parse(again, &same, &failure) < 0 || same.port != endpoint.port ||
	    strcmp(same.host, endpoint.host) || strcmp(same.user, endpoint.user))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	uint32_t decoder = data[0] % DECODER_COUNT;
	data++;
	size--;
	if (decoder == DECODE_FRAME)
		try_frame(data, size);
	else if (decoder == DECODE_PREAMBLE)
		try_preamble(data, size);
	else if (decoder == DECODE_ENDPOINT)
		try_endpoint(data, size);
	else
		try_message(decoder, data, size);
	return 0;
}

#ifndef WITH_LIBFUZZER
enum { ROUNDS = 4000, INPUT_BYTES = 3 * FRAME_PAGE_BYTES };

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* Bytes that protobuf takes for a message of @descriptor, with every field that fits: numbers and short strings. */
static size_t make_message(const ProtobufCMessageDescriptor *descriptor, uint8_t *out, size_t room, uint32_t *state)
{
	size_t used = 0;

	for (unsigned i = 0; i < descriptor->n_fields && used + 64 < room; i++) {
		const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
		uint8_t inner[512];
		size_t length;

		if (field->id > 15)
			continue;
		switch (field->type) {
		case PROTOBUF_C_TYPE_MESSAGE:
			length = make_message(field->descriptor, inner, 256, state);
			if (length > 127 || used + length + 2 > room)
				continue;
			out[used++] = (uint8_t)(field->id << 3 | 2);
			out[used++] = (uint8_t)length;
			memcpy(out + used, inner, length);
			used += length;
			break;
		case PROTOBUF_C_TYPE_STRING:
		case PROTOBUF_C_TYPE_BYTES:
			length = next_random(state) % 3 * 16;
			out[used++] = (uint8_t)(field->id << 3 | 2);
			out[used++] = (uint8_t)length;
			memset(out + used, next_random(state) & 1 ? '/' : 'a', length);
			used += length;
			break;
		case PROTOBUF_C_TYPE_FIXED32:
		case PROTOBUF_C_TYPE_FIXED64:
			length = field->type == PROTOBUF_C_TYPE_FIXED32 ? 4 : 8;
			out[used++] = (uint8_t)(field->id << 3 | (length == 4 ? 5 : 1));
			memset(out + used, (int)next_random(state), length);
			used += length;
			break;
		default:
			out[used++] = (uint8_t)(field->id << 3);
			/* Half of them small, half the size of a page. */
			out[used++] = next_random(state) & 1 ? (uint8_t)(next_random(state) % 16) : 0x80;
			if (out[used - 1] == 0x80)
				out[used++] = 0x20;
		}
	}
	return used;
}

static const ProtobufCMessageDescriptor *const descriptors[] = {
	&migrate_hello__descriptor,     &migrate_hello_answer__descriptor,
	&migrate_join__descriptor,      &migrate_join_answer__descriptor,
	&preflight_request__descriptor, &preflight_answer__descriptor,
	&file_data__descriptor,         &migrate_tree__descriptor,
	&round_begin__descriptor,       &round_end__descriptor,
	&round_ack__descriptor,         &image_chunk__descriptor,
	&images_end__descriptor,        &migrate_ready__descriptor,
	&migrate_commit__descriptor,    &migrate_running__descriptor,
	&migrate_abort__descriptor,     &post_copy_start__descriptor,
	&post_copy_done__descriptor,    &post_copy_done__descriptor,
	&migrate_progress__descriptor,  &migrate_ping__descriptor,
	&migrate_ping__descriptor,      &resume_session__descriptor,
	&session_status__descriptor,
};
_Static_assert(ARRAY_SIZE(descriptors) == MESSAGE_TYPE_COUNT - 1, "one for each type, from 1 on");

/* An input that a decoder takes, or nearly. Returns its size. */
static size_t make_input(uint32_t decoder, uint8_t *input, uint32_t *state)
{
	static const char *const texts[] = {"tcp://[fe80::1]:77", "ssh://me@there:22", "tls://host:7777", "[::]:80"};
	uint8_t *body = input + 1;

	input[0] = (uint8_t)decoder;
	if (decoder == DECODE_FRAME) {
		struct frame frame = {.type = 1 + next_random(state) % 6, .codec = next_random(state) % 3};

		frame.space_kind = SPACE_PROCESS;
		frame.pages = 1 + next_random(state) % 2;
		frame.payload_bytes = frame.codec ? 200 : frame.pages * FRAME_PAGE_BYTES;
		frame_encode(&frame, body);
		/* What LZ4 and zstd take for a beginning. */
		memset(body + FRAME_HEADER_BYTES, 0x1f, 2 * FRAME_PAGE_BYTES);
		memcpy(body + FRAME_HEADER_BYTES, "\x28\xb5\x2f\xfd", frame.codec == FRAME_ZSTD ? 4 : 0);
		return 1 + FRAME_HEADER_BYTES + 2 * FRAME_PAGE_BYTES;
	}
	if (decoder == DECODE_PREAMBLE) {
		uint8_t id[SESSION_ID_BYTES];

		memset(id, (int)next_random(state), sizeof(id));
		preamble_encode(1 + next_random(state) % 3, id, body);
		return 1 + PREAMBLE_BYTES;
	}
	if (decoder == DECODE_ENDPOINT) {
		const char *text = texts[next_random(state) % ARRAY_SIZE(texts)];

		memcpy(body, text, strlen(text));
		return 1 + strlen(text);
	}
	return decoder ? 1 + make_message(descriptors[decoder - 1], body, INPUT_BYTES / 2, state) : 1;
}

int main(void)
{
	uint32_t state = 0x2545f491;
	/* The exact size on the heap, so that a read behind the end is seen. */
	_cleanup_free_ uint8_t *made = xcalloc(1, INPUT_BYTES);

	for (uint32_t round = 0; round < ROUNDS * DECODER_COUNT; round++) {
		size_t size = make_input(round % DECODER_COUNT, made, &state);
		_cleanup_free_ uint8_t *input = xmemdup(made, size);

		for (uint32_t changes = next_random(&state) % 6; changes && size > 1; changes--)
			input[1 + next_random(&state) % (size - 1)] ^= (uint8_t)(1u << next_random(&state) % 8);
		if (next_random(&state) % 8 == 0)
			size = 1 + next_random(&state) % size;
		LLVMFuzzerTestOneInput(input, size);
	}
	return 0;
}
#endif
