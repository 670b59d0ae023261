/* SPDX-License-Identifier: Apache-2.0 */
/* Images of TCP connections: written and read again the same; one that lies about itself is refused. */
#include "unit.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "directory.h"
#include "base/fd.h"
#include "image/image.h"
#include "kinds/fd/tcp_stream.h"

#define INODE 0xa1b2

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

static struct tcp_stream *example(void)
{
	struct tcp_stream *stream = tcp_stream_new();

	stream->entry.inq_len = 5;
	stream->entry.outq_len = 7;
	stream->entry.has_unsq_len = true;
	stream->entry.unsq_len = 3;
	stream->entry.inq_seq = 0xfffffff0;
	stream->entry.outq_seq = 1;
	stream->entry.opt_mask = 7;
	stream->entry.snd_wscale = 10;
	stream->entry.mss_clamp = 1460;
	stream->in = xmemdup("hello", 5);
	stream->out = xmemdup("goodbye", 7);
	return stream;
}

static void test_round_trip(void **state)
{
	struct world *world = *state;
	struct tcp_stream *written = example(), *read = NULL;

	assert_int_equal(tcp_stream_write(world->dirfd, &world->failure, INODE, written), 0);
	assert_int_equal(tcp_stream_load(world->dirfd, &world->failure, INODE, TCP_STATE_ESTABLISHED, &read), 0);
	assert_int_equal(read->entry.inq_seq, 0xfffffff0);
	assert_int_equal(read->entry.unsq_len, 3);
	assert_memory_equal(read->in, "hello", 5);
	assert_memory_equal(read->out, "goodbye", 7);
	tcp_stream_free(written);
	tcp_stream_free(read);
}

static void refused(struct world *world, struct tcp_stream *stream)
{
	struct tcp_stream *read = NULL;

	assert_int_equal(tcp_stream_write(world->dirfd, &world->failure, INODE, stream), 0);
	assert_true(tcp_stream_load(world->dirfd, &world->failure, INODE, TCP_STATE_ESTABLISHED, &read) < 0);
	assert_true(failure_is_set(&world->failure));
	assert_null(read);
	failure_clear(&world->failure);
	tcp_stream_free(stream);
}

static void test_out_of_range(void **state)
{
	struct tcp_stream *stream;

	stream = example();
	stream->entry.unsq_len = 8;
	refused(*state, stream);
	stream = example();
	stream->entry.snd_wscale = 15;
	refused(*state, stream);
	stream = example();
	stream->entry.has_rcv_wscale = true;
	stream->entry.rcv_wscale = 200;
	refused(*state, stream);
	stream = example();
	stream->entry.opt_mask = 0x100;
	refused(*state, stream);
	stream = example();
	stream->entry.mss_clamp = 70000;
	refused(*state, stream);
}

/* The message promises more bytes than the file has. */
static void test_truncated(void **state)
{
	struct world *world = *state;
	struct tcp_stream *stream = example(), *read = NULL;
	_cleanup_fd_ int fd = -1;
	off_t size;

	assert_int_equal(tcp_stream_write(world->dirfd, &world->failure, INODE, stream), 0);
	tcp_stream_free(stream);
	fd = openat(world->dirfd, "tcp-stream-a1b2.img", O_RDWR | O_CLOEXEC);
	size = lseek(fd, 0, SEEK_END);
	for (off_t length = size - 1; length >= 0; length--) {
		assert_int_equal(ftruncate(fd, length), 0);
		assert_true(tcp_stream_load(world->dirfd, &world->failure, INODE, TCP_STATE_ESTABLISHED, &read) < 0);
		assert_null(read);
		failure_clear(&world->failure);
	}
}

static void test_missing(void **state)
{
	struct world *world = *state;
	struct tcp_stream *read = NULL;

	assert_true(tcp_stream_load(world->dirfd, &world->failure, INODE, TCP_STATE_ESTABLISHED, &read) < 0);
	assert_string_equal(world->failure.code, "image-missing");
}

/* The sender was read with 30 bytes unsent, whose sequence numbers pass zero; then the receiver got some of them. */
static void test_sent_meanwhile(void **state)
{
	struct tcp_stream *sender = example(), *receiver = example();
	const uint32_t end = 10, before_end[] = {50, 30, 20, 0};
	const uint32_t unsent[] = {30, 30, 20, 0};

	for (int fin = 0; fin < 2; fin++)
		for (size_t i = 0; i < 4; i++) {
			sender->state = fin ? TCP_STATE_FIN_WAIT1 : TCP_STATE_ESTABLISHED;
			sender->entry.outq_seq = end + (uint32_t)fin;
			sender->entry.outq_len = 60;
			sender->entry.unsq_len = 30;
			receiver->state = TCP_STATE_ESTABLISHED;
			receiver->entry.inq_seq = end - before_end[i];
			tcp_stream_count_sent(sender, receiver);
			assert_int_equal(sender->entry.unsq_len, unsent[i]);
		}
	receiver->state = TCP_STATE_CLOSE_WAIT; /* it has the end as well */
	receiver->entry.inq_seq = end + 1;
	sender->entry.unsq_len = 30;
	tcp_stream_count_sent(sender, receiver);
	assert_int_equal(sender->entry.unsq_len, 0);
	tcp_stream_free(sender);
	tcp_stream_free(receiver);
}

static void test_text(void **state)
{
	struct connection four = {.family = AF_INET, .local_port = 80, .remote_port = 4000};
	struct connection six = {.family = AF_INET6, .local_port = 80, .remote_port = 4000};
	char text[128];

	four.local[0] = htonl(0x0a000001);
	four.remote[0] = htonl(0x0a000002);
	six.local[3] = six.remote[3] = htonl(1);
	assert_string_equal(connection_text(&four, text, sizeof(text)), "10.0.0.1:80 to 10.0.0.2:4000");
	assert_string_equal(connection_text(&six, text, sizeof(text)), "[::1]:80 to [::1]:4000");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_out_of_range, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_truncated, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_missing, set_up, tear_down),
		cmocka_unit_test(test_sent_meanwhile),
		cmocka_unit_test(test_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
