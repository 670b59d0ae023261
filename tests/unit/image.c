/* SPDX-License-Identifier: Apache-2.0 */
/* Framing of image files: what is written is read again, and what is damaged in any way is refused, never trusted. */
#include "unit.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "directory.h"
#include "base/fd.h"
#include "image/image.h"
#include "image/image_schema.h"
#include "image/json.h"

struct world {
	char directory[DIRECTORY_BYTES];
	int dirfd;
	struct failure failure;
};

static int set_up(void **state)
{
	struct world *world = xcalloc(1, sizeof(*world));

	directory_make(world->directory);
	world->dirfd = open(world->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(world->dirfd >= 0);
	*state = world;
	return 0;
}

static int tear_down(void **state)
{
	struct world *world = *state;

	close(world->dirfd);
	directory_remove(world->directory);
	free(world);
	return 0;
}

static void write_bytes(struct world *world, const char *name, const void *data, size_t size)
{
	_cleanup_fd_ int fd = openat(world->dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, data, size), 0);
}

static struct image *open_image(struct world *world, enum image_kind kind, uint64_t id)
{
	struct image *image = NULL;

	failure_clear(&world->failure);
	assert_int_equal(image_open(world->dirfd, &world->failure, kind, id, &image), 0);
	return image;
}

static void refused(struct world *world, const char *code, const char *cause)
{
	assert_string_equal(world->failure.code, code);
	if (!strstr(world->failure.cause, cause))
		print_error("\"%s\" does not say \"%s\"\n", world->failure.cause, cause);
	assert_non_null(strstr(world->failure.cause, cause));
}

static void write_tree(struct world *world, uint32_t count)
{
	struct image *image;

	assert_int_equal(image_create(world->dirfd, &world->failure, IMAGE_PSTREE, 0, &image), 0);
	for (uint32_t pid = 1; pid <= count; pid++) {
		PstreeEntry entry = PSTREE_ENTRY__INIT;
		uint32_t threads[] = {pid, pid + 100000};
		entry.pid = pid;
		entry.threads = threads;
		entry.n_threads = 2;
		assert_int_equal(image_write(image, &entry.base), 0);
	}
	assert_int_equal(image_close(&image), 0);
	assert_null(image);
}

static void test_round_trip(void **state)
{
	enum { COUNT = 60000 }; /* more than one buffer */
	struct world *world = *state;
	ProtobufCMessage *message;
	uint32_t pid = 0;

	write_tree(world, COUNT);
	struct image *image = open_image(world, IMAGE_PSTREE, 0);
	assert_true(fcntl(image_fd(image), F_GETFD) & FD_CLOEXEC);
	while (image_read(image, &message) > 0) {
		assert_int_equal(((PstreeEntry *)message)->pid, ++pid);
		assert_int_equal(((PstreeEntry *)message)->threads[1], pid + 100000);
		image_message_free(message);
	}
	assert_int_equal(pid, COUNT);
	assert_false(failure_is_set(&world->failure));
	assert_int_equal(image_close(&image), 0);
}

/* The file cut at every byte: only cuts between messages leave a file that can be read. */
static void test_truncated_everywhere(void **state)
{
	struct world *world = *state;
	uint8_t whole[256];

	write_tree(world, 3);
	_cleanup_fd_ int fd = openat(world->dirfd, "pstree.img", O_RDONLY | O_CLOEXEC);
	ssize_t size = read(fd, whole, sizeof(whole));
	assert_true(size > 8 && size < (ssize_t)sizeof(whole));
	size_t message_bytes = (size - 8) / 3;
	for (size_t cut = 0; cut < (size_t)size; cut++) {
		struct image *image = NULL;
		ProtobufCMessage *message;
		int result;
		failure_clear(&world->failure);
		write_bytes(world, "pstree.img", whole, cut);
		if (cut < 8) {
			assert_true(image_open(world->dirfd, &world->failure, IMAGE_PSTREE, 0, &image) < 0);
			refused(world, "image-truncated", "ends in the middle");
			continue;
		}
		image = open_image(world, IMAGE_PSTREE, 0);
		while ((result = image_read(image, &message)) > 0)
			image_message_free(message);
		assert_int_equal(result < 0, (cut - 8) % message_bytes != 0);
		if (result < 0)
			refused(world, "image-truncated", "ends in the middle");
		assert_int_equal(image_close(&image), result);
	}
}

static void test_lengths(void **state)
{
	static const struct {
		uint32_t length;
		const char *code;
	} cases[] = {{0xffffffff, "image-message-length"},
		     {0x7fffffff, "image-message-length"},
		     {(64 << 20) + 1, "image-message-length"},
		     {64 << 20, "image-truncated"},
		     {9, "image-truncated"}};
	struct world *world = *state;
	ProtobufCMessage *message;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint32_t words[5] = {0x54564319, 0x51403912, cases[i].length, 0, 0};
		write_bytes(world, "fs-1.img", words, sizeof(words));
		struct image *image = open_image(world, IMAGE_FS, 1);
		assert_true(image_read(image, &message) < 0);
		assert_string_equal(world->failure.code, cases[i].code);
		assert_true(image_close(&image) < 0);
	}
}

static void test_wrong_magic(void **state)
{
	struct world *world = *state;
	struct image *image = NULL;
	uint32_t words[2] = {0x54564319, 0x50273030};

	write_bytes(world, "fs-1.img", words, sizeof(words));
	assert_int_equal(image_open(world->dirfd, &world->failure, IMAGE_FS, 1, &image), -EINVAL);
	refused(world, "image-magic", "wrong magic 0x50273030: this is a PSTREE image, not FS");
	failure_clear(&world->failure);
	write_bytes(world, "inventory.img", words, sizeof(words));
	assert_int_equal(image_open(world->dirfd, &world->failure, IMAGE_INVENTORY, 0, &image), -EINVAL);
	refused(world, "image-magic", "this is a PSTREE image, not INVENTORY");
	failure_clear(&world->failure);
	write_bytes(world, "fs-1.img", "no image", 8);
	assert_int_equal(image_open(world->dirfd, &world->failure, IMAGE_FS, 1, &image), -EINVAL);
	refused(world, "image-magic", "this is not a FS image");
	assert_null(image);
}

static void test_missing(void **state)
{
	struct world *world = *state;
	struct image *image = NULL;
	ProtobufCMessage *message;

	assert_int_equal(image_open(world->dirfd, &world->failure, IMAGE_FS, 1, &image), -ENOENT);
	assert_false(failure_is_set(&world->failure));
	assert_int_equal(image_read_one(world->dirfd, &world->failure, IMAGE_FS, 1, &message), -ENOENT);
	refused(world, "image-missing", "no such image");
}

static void test_not_a_message(void **state)
{
	struct world *world = *state;
	ProtobufCMessage *message;
	/* A message without its required fields, one whose field has a wrong wire type, and noise. */
	static const char bodies[][9] = {
		{2, 0, 0, 0, 0x08, 0x01}, {2, 0, 0, 0, 0x0d, 0x01}, {4, 0, 0, 0, -1, -1, -1, -1}};
	uint8_t file[16] = {0x19, 0x43, 0x56, 0x54, 0x12, 0x39, 0x40, 0x51};

	for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
		memcpy(file + 8, bodies[i], 8);
		write_bytes(world, "fs-1.img", file, 12 + bodies[i][0]);
		failure_clear(&world->failure);
		assert_true(image_read_one(world->dirfd, &world->failure, IMAGE_FS, 1, &message) < 0);
		refused(world, "image-message", "are not a fs_entry");
	}
}

/* Control groups nest in themselves: the decoder must not be led to the end of its stack. */
static void test_deep_nesting(void **state)
{
	enum { LEVELS = 200000, LEVEL_BYTES = 5 };
	struct world *world = *state;
	size_t size = LEVELS * LEVEL_BYTES;
	_cleanup_free_ uint8_t *file = xcalloc(12 + size, 1);
	uint32_t head[3] = {0x54564319, 0x59383330, size};
	ProtobufCMessage *message;
	size_t left = size;

	memcpy(file, head, sizeof(head));
	for (uint8_t *at = file + 12; left; at += LEVEL_BYTES) {
		left -= LEVEL_BYTES;
		/* cgroup_entry.controllers is 2, cg_controller_entry.dirs 2, cgroup_dir_entry.children 2 */
		at[0] = 2 << 3 | 2;
		for (int i = 0; i < 4; i++)
			at[1 + i] = (left >> (7 * i) & 0x7f) | (i < 3 ? 0x80 : 0);
	}
	write_bytes(world, "cgroup.img", file, 12 + size);
	assert_true(image_read_one(world->dirfd, &world->failure, IMAGE_CGROUP, 0, &message) < 0);
	refused(world, "image-message", "nests deeper");
}

static void test_wrong_type_is_refused(void **state)
{
	struct world *world = *state;
	PstreeEntry entry = PSTREE_ENTRY__INIT;
	struct image *image;

	assert_int_equal(image_create(world->dirfd, &world->failure, IMAGE_FS, 1, &image), 0);
	assert_true(image_write(image, &entry.base) < 0);
	refused(world, "image-message", "pstree_entry does not belong");
	assert_true(image_close(&image) < 0);
}

static void test_write_error_is_told_at_the_close(void **state)
{
	struct world *world = *state;
	FsEntry entry = FS_ENTRY__INIT;
	struct image *image;

	assert_int_equal(symlinkat("/dev/full", world->dirfd, "fs-1.img"), 0);
	assert_int_equal(image_create(world->dirfd, &world->failure, IMAGE_FS, 1, &image), 0);
	assert_int_equal(image_write(image, &entry.base), 0);
	assert_int_equal(image_close(&image), -ENOSPC);
	refused(world, "image-write", "cannot be written");
}

static void test_pagemap_begins_with_its_head(void **state)
{
	struct world *world = *state;
	PagemapHead head = PAGEMAP_HEAD__INIT;
	PagemapEntry entry = PAGEMAP_ENTRY__INIT;
	ProtobufCMessage *message;
	struct image *image;

	assert_int_equal(image_create(world->dirfd, &world->failure, IMAGE_PAGEMAP, 7, &image), 0);
	assert_int_equal(image_write(image, &head.base), 0);
	assert_int_equal(image_write(image, &entry.base), 0);
	assert_int_equal(image_close(&image), 0);
	image = open_image(world, IMAGE_PAGEMAP, 7);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(image_read(image, &message), 1);
		assert_ptr_equal(message->descriptor, i ? &pagemap_entry__descriptor : &pagemap_head__descriptor);
		image_message_free(message);
	}
	assert_int_equal(image_read(image, &message), 0);
	image_close(&image);
}

/* Payload larger than the buffer from a pipe and a file; seeking; the descriptor given out in between. */
static void test_payload(void **state)
{
	enum { PIPE_BYTES = 65536, FILE_BYTES = 1 << 20 };
	struct world *world = *state;
	PipeDataEntry entry = PIPE_DATA_ENTRY__INIT;
	_cleanup_free_ uint8_t *data = xcalloc(FILE_BYTES, 1), *again = xcalloc(FILE_BYTES, 1);
	ProtobufCMessage *message;
	struct image *image;
	int pipe_fds[2];

	for (size_t i = 0; i < FILE_BYTES; i++)
		data[i] = i * 7 + (i >> 9);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_int_equal(write_full(pipe_fds[1], data, PIPE_BYTES), 0);
	_cleanup_fd_ int file = memfd_create("payload", MFD_CLOEXEC);
	assert_int_equal(pwrite_full(file, data, FILE_BYTES, 0), 0);
	assert_int_equal(image_create(world->dirfd, &world->failure, IMAGE_PIPES_DATA, 0, &image), 0);
	const int inputs[] = {pipe_fds[0], file};
	const uint32_t sizes[] = {PIPE_BYTES, FILE_BYTES};
	for (int i = 0; i < 2; i++) {
		entry.pipe_id = i;
		entry.bytes = sizes[i];
		assert_int_equal(image_write(image, &entry.base), 0);
		assert_int_equal(image_write_from_fd(image, inputs[i], sizes[i]), 0);
	}
	assert_int_equal(write_full(image_fd(image), data, 0), 0);
	assert_int_equal(image_write(image, &entry.base), 0);
	assert_int_equal(image_write_raw(image, data, FILE_BYTES), 0);
	close(pipe_fds[1]);
	assert_int_equal(image_close(&image), 0);

	image = open_image(world, IMAGE_PIPES_DATA, 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(image_read(image, &message), 1);
		uint32_t size = ((PipeDataEntry *)message)->bytes;
		image_message_free(message);
		off_t offset = image_offset(image);
		if (i == 1) {
			/* Some through the descriptor, then back and forth. */
			assert_int_equal(read_full(image_fd(image), again, 100), 0);
			assert_int_equal(image_offset(image), offset + 100);
			assert_int_equal(image_seek(image, offset), 0);
		}
		memset(again, 0, size);
		assert_int_equal(image_read_raw(image, again, size), 0);
		assert_memory_equal(again, data, size);
		assert_int_equal(image_offset(image), offset + size);
	}
	assert_int_equal(image_read(image, &message), 0);
	assert_true(image_read_raw(image, again, 1) < 0);
	refused(world, "image-truncated", "ends in the middle");
	image_close(&image);

	failure_clear(&world->failure);
	assert_int_equal(image_create(world->dirfd, &world->failure, IMAGE_PIPES_DATA, 0, &image), 0);
	assert_true(image_write_from_fd(image, pipe_fds[0], 10) < 0);
	refused(world, "image-input-short", "10 bytes early");
	assert_true(image_close(&image) < 0);
	close(pipe_fds[0]);
}

static char *decoded(struct world *world, const char *name)
{
	struct image *image;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	failure_clear(&world->failure);
	assert_int_equal(image_open_any(world->dirfd, name, &world->failure, &image), 0);
	assert_int_equal(image_decode(image, false, out), 0);
	fclose(out);
	image_close(&image);
	return text;
}

/* Kinds with payload that the golden images do not have: JSON to image and back is the same text. */
static void test_json_payloads(void **state)
{
	static const struct {
		const char *name, *text;
	} cases[] = {
		{"ghost-file-1f.img", "{\"magic\": \"GHOST_FILE\", \"entries\": [{\"uid\": 0, \"gid\": 0, \"mode\": "
				      "33152, \"chunks\": true}, "
				      "{\"len\": 3, \"off\": 0, \"extra\": \"YWJj\\n\"}, {\"len\": 1, \"off\": 9, "
				      "\"extra\": \"eA==\\n\"}]}\n"},
		{"ipcns-sem-1.img",
		 "{\"magic\": \"IPCNS_SEM\", \"entries\": [{\"desc\": {\"key\": 1, \"uid\": 0, \"gid\": 0, \"cuid\": "
		 "0, "
		 "\"cgid\": 0, \"mode\": 384, \"id\": 0}, \"nsems\": 3, \"extra\": [1, 2, 65535]}]}\n"},
		{"ipcns-msg-1.img", "{\"magic\": \"IPCNS_MSG\", \"entries\": [{\"desc\": {\"key\": 1, \"uid\": 0, "
				    "\"gid\": 0, \"cuid\": 0, "
				    "\"cgid\": 0, \"mode\": 384, \"id\": 0}, \"qbytes\": 100, \"qnum\": 1, \"extra\": "
				    "[{\"mtype\": 7, \"msize\": 3}, \"YWJj\\n\"]}]}\n"},
	};
	struct world *world = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		FILE *in = fmemopen((void *)cases[i].text, strlen(cases[i].text), "r");
		json_t *json = NULL;
		char line[1400];
		failure_clear(&world->failure);
		assert_int_equal(json_read(in, cases[i].name, &world->failure, &json), 0);
		int error = image_encode(json, world->dirfd, cases[i].name, &world->failure);
		if (error)
			print_error("%s\n", failure_line(&world->failure, line, sizeof(line)));
		assert_int_equal(error, 0);
		json_decref(json);
		fclose(in);
		_cleanup_free_ char *text = decoded(world, cases[i].name);
		assert_string_equal(text, cases[i].text);
	}
}

static void test_names(void **state)
{
	enum image_kind kind;
	char name[64];

	assert_string_equal(image_name(IMAGE_CORE, 12, name, sizeof(name)), "core-12.img");
	assert_string_equal(image_name(IMAGE_TCP_STREAM, 0x1f, name, sizeof(name)), "tcp-stream-1f.img");
	assert_string_equal(image_name(IMAGE_STATS, 1, name, sizeof(name)), "stats-restore");
	assert_string_equal(image_name(IMAGE_PAGEMAP, 1ul << 40, name, sizeof(name)), "pagemap-1099511627776.img");
	assert_int_equal(image_kind_of_name("/a/pagemap-shmem-3.img", &kind), 0);
	assert_int_equal(kind, IMAGE_SHMEM_PAGEMAP);
	assert_int_equal(image_kind_of_name("pagemap-x.img", &kind), -ENOENT);
}

int main(void)
{
#define WITH_WORLD(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		WITH_WORLD(test_round_trip),
		WITH_WORLD(test_truncated_everywhere),
		WITH_WORLD(test_lengths),
		WITH_WORLD(test_wrong_magic),
		WITH_WORLD(test_missing),
		WITH_WORLD(test_not_a_message),
		WITH_WORLD(test_deep_nesting),
		WITH_WORLD(test_wrong_type_is_refused),
		WITH_WORLD(test_write_error_is_told_at_the_close),
		WITH_WORLD(test_pagemap_begins_with_its_head),
		WITH_WORLD(test_payload),
		WITH_WORLD(test_json_payloads),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
