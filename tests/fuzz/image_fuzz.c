/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as an image: reader, decoder to JSON, and the way back. What decodes must encode, and decode to the same
 * text again, unless it has text that is not UTF-8, which JSON cannot carry.
 *
 * The first byte chooses a kind, so that mutations need not find its magics; 255 leaves the bytes as they are.
 * With clang's libFuzzer this is an endless search; without it main() runs a bounded number of mutations of the files
 * that are named, the same in every run.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "image/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Decodes the file behind @fd. Returns its text, which the caller frees, or NULL if it was refused. */
static char *decode_fd(int fd)
{
	char path[32], *text = NULL;
	struct failure failure = {0};
	struct image *image = NULL;
	size_t length;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (image_open_any(AT_FDCWD, path, &failure, &image) < 0)
		return NULL;
	FILE *out = open_memstream(&text, &length);
	int error = image_decode(image, true, out);
	fclose(out);
	image_close(&image);
	if (error) {
		/* A refusal without a reason is a bug. */
		if (!failure_is_set(&failure))
			abort();
		free(text);
		return NULL;
	}
	return text;
}

static void encode_again(char *text)
{
	_cleanup_fd_ int fd = memfd_create("again", MFD_CLOEXEC);
	FILE *in = fmemopen(text, strlen(text), "r");
	struct failure failure = {0};
	json_t *json = NULL;
	char path[32];

	if (fd < 0 || !in)
		abort();
	int error = json_read(in, "fuzz", &failure, &json);
	fclose(in);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (!error)
		error = image_encode(json, AT_FDCWD, path, &failure);
	json_decref(json);
	if (error)
		return;
	_cleanup_free_ char *again = decode_fd(fd);
	if (!again || strcmp(again, text))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_fd_ int fd = memfd_create("image", MFD_CLOEXEC);

	if (!size || fd < 0)
		return 0;
	if (data[0] < IMAGE_KIND_COUNT && image_descriptions[data[0]].magic) {
		const struct image_description *description = &image_descriptions[data[0]];
		if (description->head_magic)
			write_full(fd, &description->head_magic, 4);
		write_full(fd, &description->magic, 4);
	}
	if (write_full(fd, data + 1, size - 1) < 0)
		return 0;
	_cleanup_free_ char *text = decode_fd(fd);
	if (text)
		encode_again(text);
	return 0;
}

#ifndef WITH_LIBFUZZER
#define ROUNDS_PER_FILE 300

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* A few bytes changed, and one time in four the end cut off. */
static void mutate_and_run(const uint8_t *file, size_t size, uint32_t *state)
{
	_cleanup_free_ uint8_t *input = xcalloc(size + 1, 1);

	input[0] = 255;
	memcpy(input + 1, file, size);
	for (uint32_t changes = next_random(state) % 8; changes; changes--) {
		uint32_t place = next_random(state) % size;
		/* The magics stay: all that matters lies behind them. */
		if (place >= 8)
			input[1 + place] = next_random(state) & 1 ? next_random(state) : input[1 + place] ^ 0x80;
	}
	if (next_random(state) % 4 == 0)
		size = next_random(state) % size;
	LLVMFuzzerTestOneInput(input, 1 + size);
}

int main(int count, char **paths)
{
	uint32_t state = 0x2545f491;

	for (int i = 1; i < count; i++) {
		_cleanup_free_ char *file = NULL;
		size_t size = 0;
		if (read_text_at(AT_FDCWD, paths[i], &file, &size) < 0 || !size) {
			fprintf(stderr, "%s: cannot be read\n", paths[i]);
			return 1;
		}
		for (int round = 0; round < ROUNDS_PER_FILE; round++)
			mutate_and_run((const uint8_t *)file, size, &state);
	}
	return count > 1 ? 0 : 1;
}
#endif
