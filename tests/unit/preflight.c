/* SPDX-License-Identifier: Apache-2.0 */
/* What the preflight finds, and files on their way: complete, changed, refused. */
#include "unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "directory.h"
#include "base/arena.h"
#include "base/fd.h"
#include "migrate/file_transfer.h"
#include "migrate/preflight.h"
#include "migrate/preflight_collect.h"
#include "migrate/preflight_cpu.h"
#include "migrate/protocol.h"
#include "migrate/stream.h"

/* directory/source is the root that files are sent from, directory/there where they arrive. */
static char directory[DIRECTORY_BYTES];
static char there[DIRECTORY_BYTES + 16], source_name[200];

enum { BYTES = 300 * 1024 + 77 };

static void make_file(const char *path, const uint8_t *bytes, size_t size)
{
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);

	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes, size), 0);
}

static int make_directories(void **state)
{
	_cleanup_free_ char *command = NULL;

	directory_make(directory);
	snprintf(there, sizeof(there), "%s/there", directory);
	snprintf(source_name, sizeof(source_name), "%s/source%s/file", directory, there);
	command = xasprintf("mkdir -p %s %s/source%s", there, directory, there);
	return system(command);
}

static int remove_directories(void **state)
{
	directory_remove(directory);
	return 0;
}

/* ---- files ---- */

/* The receiving half, in a thread. */
struct arriving {
	struct stream *stream;
	const MigrateFile *file;
	struct failure failure;
	int result;
	uint64_t data_bytes, copied_bytes;
	bool damage; /* the old file changes while the new one comes */
};

static void *arrive(void *context)
{
	struct arriving *arriving = context;
	struct file_arrival *arrival = NULL;
	bool last = false;
	int r = file_arrival_new(arriving->file, &arriving->failure, &arrival);

	if (!r && arriving->damage) {
		_cleanup_fd_ int fd = open(arriving->file->path, O_WRONLY | O_CLOEXEC);

		assert_int_equal(pwrite_full(fd, "damaged", 7, 0), 0);
	}
	while (!r && !last) {
		struct message message;

		r = message_receive(arriving->stream, 1u << MESSAGE_FILE_DATA, &arriving->failure, &message);
		if (r < 0)
			break;
		const FileData *data = (FileData *)message.body;
		arriving->data_bytes += data->data.len;
		arriving->copied_bytes += data->copy_bytes;
		last = data->last;
		r = file_arrival_take(arrival, data, &arriving->failure);
		message_free(&message);
	}
	file_arrival_free(&arrival);
	arriving->result = r;
	stream_shutdown(arriving->stream);
	return NULL;
}

static int transfer(const char *path, struct arriving *arriving)
{
	MigrateFile file = MIGRATE_FILE__INIT;
	FileNeed need = FILE_NEED__INIT;
	struct failure failure = {};
	struct protocol protocol;
	struct stream *pair[2];
	struct arena arena = {};
	pthread_t thread;
	_cleanup_free_ char *root = xasprintf("%s/source", directory);
	_cleanup_fd_ int root_dirfd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);

	file.path = (char *)path;
	file.mode = S_IFREG | 0751;
	file.uid = geteuid();
	file.gid = getegid();
	file.mtime_ns = INT64_C(1234567890123456789);
	file.size = BYTES;
	file_need_fill(&arena, path, &need);
	assert_int_equal(stream_pair(pair), 0);
	protocol_init(&protocol, pair[0], MIGRATE_SOURCE);
	protocol.state = MIGRATE_PREFLIGHT;
	arriving->stream = pair[1];
	arriving->file = &file;
	assert_int_equal(pthread_create(&thread, NULL, arrive, arriving), 0);
	file_send(&protocol, root_dirfd, &file, &need, NULL, NULL, NULL, &failure);
	pthread_join(thread, NULL);
	protocol_destroy(&protocol);
	stream_close(&pair[0]);
	stream_close(&pair[1]);
	arena_free(&arena);
	return arriving->result;
}

static void expect_file(const char *path, const uint8_t *bytes)
{
	_cleanup_free_ char *text = NULL;
	struct stat status;
	size_t length;

	assert_int_equal(read_text_at(AT_FDCWD, path, &text, &length), 0);
	assert_int_equal(length, BYTES);
	assert_memory_equal(text, bytes, BYTES);
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0751);
	assert_int_equal(status.st_mtim.tv_sec, 1234567890);
	assert_int_equal(status.st_mtim.tv_nsec, 123456789);
}

static void expect_no_leftovers(void)
{
	_cleanup_free_ char *command = xasprintf("! ls -A %s | grep -q '^\\.criu-'", there);

	assert_int_equal(system(command), 0);
}

static void test_files(void **state)
{
	static uint8_t bytes[BYTES];
	_cleanup_free_ char *path = xasprintf("%s/file", there), *outside = xasprintf("%s/outside", directory);
	_cleanup_free_ char *link = xasprintf("%s/link", there), *through = xasprintf("%s/link/file", there);
	struct arriving arriving = {};

	for (size_t i = 0; i < BYTES; i++)
		bytes[i] = (uint8_t)(i / 65536 == 2 ? 0 : i * 7 + i / 1000 + 1);
	make_file(source_name, bytes, BYTES);

	/* It is missing. */
	assert_int_equal(transfer(path, &arriving), 0);
	expect_file(path, bytes);
	assert_int_equal(arriving.data_bytes, BYTES - 65536);

	/* One byte differs: one block travels, and the end that is no whole block. */
	bytes[70000] ^= 1;
	make_file(source_name, bytes, BYTES);
	arriving = (struct arriving){};
	assert_int_equal(transfer(path, &arriving), 0);
	expect_file(path, bytes);
	assert_int_equal(arriving.data_bytes, 65536 + BYTES % 65536);
	assert_int_equal(arriving.copied_bytes, 2 * 65536);

	/* The old file is not what was hashed any more. */
	bytes[70000] ^= 1;
	make_file(source_name, bytes, BYTES);
	arriving = (struct arriving){.damage = true};
	assert_int_equal(transfer(path, &arriving), -EBADMSG);
	assert_string_equal(arriving.failure.code, "file-checksum");
	expect_no_leftovers();

	/* The name is a link to something precious: the link is replaced, not followed. */
	make_file(outside, (const uint8_t *)"precious", 8);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink(outside, path), 0);
	arriving = (struct arriving){};
	assert_int_equal(transfer(path, &arriving), 0);
	expect_file(path, bytes);
	struct stat status;
	assert_int_equal(stat(outside, &status), 0);
	assert_int_equal(status.st_size, 8);

	/* A directory on the way is one: refused. */
	assert_int_equal(symlink(directory, link), 0);
	arriving = (struct arriving){};
	assert_int_equal(transfer(through, &arriving), -ELOOP);
	assert_string_equal(arriving.failure.code, "file-path");
	assert_int_equal(unlink(link), 0);
	expect_no_leftovers();
}

/* Parts that are out of order, too long, or of no file at all. */
static void test_wrong_parts(void **state)
{
	_cleanup_free_ char *path = xasprintf("%s/part", there);
	struct preflight_server *server = preflight_server_new(&(struct preflight_server_options){});
	MigrateFile file = MIGRATE_FILE__INIT;
	FileData data = FILE_DATA__INIT;
	struct failure failure = {};
	struct file_arrival *arrival;

	data.file = 3;
	assert_int_equal(preflight_server_take_file(server, &data, &failure), -EPROTO);
	preflight_server_free(&server);
	file.path = path;
	failure_clear(&failure);
	assert_int_equal(file_arrival_new(&file, &failure, &arrival), 0);
	data.offset = 1;
	assert_int_equal(file_arrival_take(arrival, &data, &failure), -EPROTO);
	data.offset = 0;
	data.has_hole_bytes = true;
	data.hole_bytes = UINT64_C(1) << 40;
	failure_clear(&failure);
	assert_int_equal(file_arrival_take(arrival, &data, &failure), -EPROTO);
	data.has_hole_bytes = false;
	data.has_copy_bytes = data.has_copy_offset = true;
	data.copy_bytes = 5;
	failure_clear(&failure);
	assert_int_equal(file_arrival_take(arrival, &data, &failure), -EPROTO);
	file_arrival_free(&arrival);
	expect_no_leftovers();
	assert_int_equal(access(path, F_OK), -1);
}

/* ---- what a tree needs ---- */

struct asked {
	struct stream *stream;
	struct preflight_server *server;
};

static void *answer(void *context)
{
	struct asked *asked = context;
	struct failure failure = {};
	struct protocol protocol;
	struct message message;

	protocol_init(&protocol, asked->stream, MIGRATE_DESTINATION);
	protocol.state = MIGRATE_PREFLIGHT;
	assert_int_equal(protocol_expect(&protocol, MESSAGE_PREFLIGHT_REQUEST, &failure, &message), 0);
	assert_int_equal(preflight_server_answer(asked->server, &protocol, (PreflightRequest *)message.body, &failure),
			 0);
	message_free(&message);
	protocol_destroy(&protocol);
	return NULL;
}

/* The verdict of the answer about @object, which may be part of the name: -1 = no line. */
static int verdict_of(const PreflightRequest *request, const char *name, const char *object)
{
	struct asked asked = {.server = preflight_server_new(&(struct preflight_server_options){})};
	struct failure failure = {};
	struct protocol protocol;
	struct message message;
	struct stream *pair[2];
	pthread_t thread;
	int verdict = -1;

	assert_int_equal(stream_pair(pair), 0);
	asked.stream = pair[1];
	assert_int_equal(pthread_create(&thread, NULL, answer, &asked), 0);
	protocol_init(&protocol, pair[0], MIGRATE_SOURCE);
	protocol.state = MIGRATE_PREFLIGHT;
	assert_int_equal(protocol_send(&protocol, MESSAGE_PREFLIGHT_REQUEST, request, &failure), 0);
	assert_int_equal(protocol_expect(&protocol, MESSAGE_PREFLIGHT_ANSWER, &failure, &message), 0);
	pthread_join(thread, NULL);
	const PreflightAnswer *answered = (PreflightAnswer *)message.body;
	for (size_t i = 0; i < answered->n_checks; i++)
		if (!strcmp(answered->checks[i]->name, name) && strstr(answered->checks[i]->object, object))
			verdict = (int)answered->checks[i]->verdict;
	message_free(&message);
	protocol_destroy(&protocol);
	preflight_server_free(&asked.server);
	stream_close(&pair[0]);
	stream_close(&pair[1]);
	return verdict;
}

static unsigned use_of(const PreflightRequest *request, const char *path)
{
	for (size_t i = 0; i < request->n_files; i++)
		if (!strcmp(request->files[i]->path, path))
			return request->files[i]->use;
	return 0;
}

static void test_collect(void **state)
{
	_cleanup_free_ char *path = xasprintf("%s/open", directory);
	_cleanup_fd_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	_cleanup_fd_ int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	PreflightRequest request = PREFLIGHT_REQUEST__INIT;
	socklen_t size = sizeof(address);
	struct failure failure = {};
	struct arena arena = {};
	char *skip[] = {"pids"};

	assert_int_equal(write_full(fd, "text", 4), 0);
	assert_int_equal(bind(socket_fd, (struct sockaddr *)&address, size), 0);
	assert_int_equal(listen(socket_fd, 1), 0);
	assert_int_equal(getsockname(socket_fd, (struct sockaddr *)&address, &size), 0);
	assert_int_equal(preflight_collect(getpid(), &arena, &request, &failure), 0);
	assert_int_equal(use_of(&request, path), PREFLIGHT_FILE_OPEN | PREFLIGHT_FILE_WRITTEN);
	assert_true(request.n_files > 3 && request.memory_bytes > 0);
	assert_int_equal(request.ids[0], getpid());
	assert_int_equal(request.n_listeners, 1);
	assert_int_equal(request.listeners[0]->port, ntohs(address.sin_port));
	assert_memory_equal(request.listeners[0]->address.data, &address.sin_addr, 4);

	/* The same machine: it is all there, and therefore taken. */
	assert_int_equal(verdict_of(&request, "pids", ""), PREFLIGHT_FAILED);
	assert_int_equal(verdict_of(&request, "ports", "127.0.0.1"), PREFLIGHT_FAILED);
	assert_int_equal(verdict_of(&request, "files", ""), -1);
	assert_int_equal(verdict_of(&request, "cpu", ""), -1);
	assert_int_equal(verdict_of(&request, "memory", ""), -1);
	request.skip = skip;
	request.n_skip = 1;
	assert_int_equal(verdict_of(&request, "pids", ""), PREFLIGHT_SKIPPED);

	request.cpu->cpuid[2] |= 1 << 16; /* avx512f, or else what this machine has not */
	request.cpu->xfeatures |= UINT64_C(1) << 60;
	assert_int_equal(verdict_of(&request, "cpu", ""), PREFLIGHT_FAILED);
	request.memory_bytes = UINT64_C(1) << 60;
	assert_int_equal(verdict_of(&request, "memory", ""), PREFLIGHT_FAILED);
	assert_int_equal(ftruncate(fd, 2), 0);
	assert_int_equal(verdict_of(&request, "files", path), PREFLIGHT_FAILED);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(verdict_of(&request, "files", path), PREFLIGHT_FAILED);
	request.listeners[0]->address.data[1] = 99;
	request.listeners[0]->address.data[0] = 203;
	assert_int_equal(verdict_of(&request, "addresses", "203.99.0.1"), PREFLIGHT_FAILED);
	arena_free(&arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_wrong_parts),
		cmocka_unit_test(test_collect),
	};

	return cmocka_run_group_tests(tests, make_directories, remove_directories);
}
