/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connected unix stream sockets without names: data waiting in both directions, shut down directions, an end that was
 * closed, a large queue, an end in another process, options.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define LARGE_BYTES 300000

static int get_int(int fd, int option)
{
	int value = -1;
	socklen_t size = sizeof(value);

	MUST(getsockopt(fd, SOL_SOCKET, option, &value, &size));
	return value;
}

static void set_int(int fd, int option, int value)
{
	MUST(setsockopt(fd, SOL_SOCKET, option, &value, sizeof(value)));
}

static void check_queue(int fd, const char *expected, int line)
{
	char buffer[64] = "";
	ssize_t length = recv(fd, buffer, sizeof(buffer), MSG_PEEK | MSG_DONTWAIT);

	CHECK(length == (ssize_t)strlen(expected) && !memcmp(buffer, expected, length),
	      "line %d: %zd bytes \"%s\", not \"%s\"", line, length, buffer, expected);
}

static void check_unnamed(int fd)
{
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);

	CHECK(getsockname(fd, (struct sockaddr *)&name, &length) == 0 && length == 2, "name of %d bytes", length);
	length = sizeof(name);
	CHECK(getpeername(fd, (struct sockaddr *)&name, &length) == 0 && length == 2, "peer of %d bytes", length);
}

/* A byte there and back. */
static void check_connected(int one, int other)
{
	char byte = 0;

	CHECK(send(one, "x", 1, MSG_DONTWAIT) == 1);
	CHECK(recv(other, &byte, 1, MSG_DONTWAIT) == 1 && byte == 'x');
}

static void make_large(int fd)
{
	char *data = malloc(LARGE_BYTES);

	for (size_t i = 0; i < LARGE_BYTES; i++)
		data[i] = i * 7 + (i >> 8);
	CHECK(send(fd, data, LARGE_BYTES, MSG_DONTWAIT) == LARGE_BYTES, "errno %d", errno);
	free(data);
}

static void take_large(int fd)
{
	char *data = malloc(LARGE_BYTES + 1);
	size_t done = 0, different = 0;
	ssize_t count;

	while (done <= LARGE_BYTES && (count = recv(fd, data + done, LARGE_BYTES + 1 - done, MSG_DONTWAIT)) > 0)
		done += count;
	for (size_t i = 0; i < done; i++)
		different += data[i] != (char)(i * 7 + (i >> 8));
	CHECK(done == LARGE_BYTES && !different, "%zu bytes, %zu differ", done, different);
	free(data);
}

/* In the child: answers what it is asked. */
static void answer(void *argument)
{
	char question[8] = "";
	int fd = *(int *)argument;

	CHECK(recv(fd, question, sizeof(question), 0) == 4 && !memcmp(question, "ask!", 4));
	CHECK(send(fd, "answer", 6, 0) == 6);
}

static void check_options(int fd)
{
	struct timeval timeout;
	struct linger linger;
	socklen_t time_length = sizeof(timeout), linger_length = sizeof(linger), filter_length = 0;

	CHECK(get_int(fd, SO_PASSCRED) == 1);
	CHECK(get_int(fd, SO_RCVLOWAT) == 3, "%d", get_int(fd, SO_RCVLOWAT));
	CHECK(get_int(fd, SO_PRIORITY) == 4);
	CHECK(get_int(fd, SO_SNDBUF) == 70000, "%d", get_int(fd, SO_SNDBUF));
	CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, &time_length) == 0 && timeout.tv_sec == 5 &&
	      timeout.tv_usec == 500000);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &linger_length) == 0 && linger.l_onoff == 1 &&
	      linger.l_linger == 17);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &filter_length) == 0 && filter_length == 1,
	      "filter of %d instructions", filter_length);
	CHECK(fcntl(fd, F_GETFL) == (O_RDWR | O_NONBLOCK), "flags %o", fcntl(fd, F_GETFL));
}

int main(void)
{
	int both[2], half[2], ended[2], large[2], shared[2], set[2], copy;
	struct sock_filter accept_all = {BPF_RET | BPF_K, 0, 0, 0xffffffff};
	struct sock_fprog filter = {1, &accept_all};
	struct timeval timeout = {5, 500000};
	struct linger linger = {1, 17};

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, both));
	MUST(send(both[0], "to the second", 13, 0));
	MUST(send(both[1], "to the ", 7, 0));
	MUST(send(both[1], "first", 5, 0));
	copy = MUST(dup(both[0]));

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
	MUST(send(half[0], "last words", 10, 0));
	MUST(shutdown(half[0], SHUT_WR));

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ended));
	MUST(send(ended[1], "and gone", 8, 0));
	MUST(close(ended[1]));

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, large));
	set_int(large[0], SO_SNDBUF, 1 << 19);
	make_large(large[0]);

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, set));
	MUST(setsockopt(set[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
	MUST(setsockopt(set[0], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	MUST(setsockopt(set[0], SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)));
	set_int(set[0], SO_PASSCRED, 1);
	set_int(set[0], SO_RCVLOWAT, 3);
	set_int(set[0], SO_PRIORITY, 4);
	set_int(set[0], SO_SNDBUF, 35000);
	MUST(fcntl(set[0], F_SETFL, O_NONBLOCK));

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, shared));
	harness_start_child(answer, &shared[1]);
	MUST(close(shared[1]));

	harness_ready();
	while (harness_wait_check()) {
		char reply[16] = "", rest[16];
		struct pollfd hang_up = {.fd = ended[0], .events = POLLIN | POLLRDHUP};

		check_queue(both[1], "to the second", __LINE__);
		check_queue(both[0], "to the first", __LINE__);
		check_queue(copy, "to the first", __LINE__);
		check_unnamed(both[0]);

		check_queue(half[1], "last words", __LINE__);
		CHECK(send(half[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
		check_connected(half[1], half[0]);

		check_queue(ended[0], "and gone", __LINE__);
		CHECK(send(ended[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
		CHECK(poll(&hang_up, 1, 0) == 1 && hang_up.revents & POLLHUP, "events %x", hang_up.revents);
		CHECK(recv(ended[0], rest, sizeof(rest), MSG_DONTWAIT | MSG_PEEK) == 8);

		take_large(large[1]);
		make_large(large[0]);

		check_options(set[0]);
		check_connected(set[0], set[1]);

		CHECK(send(shared[0], "ask!", 4, 0) == 4);
		harness_check_children();
		CHECK(recv(shared[0], reply, sizeof(reply), 0) == 6 && !memcmp(reply, "answer", 6));
		harness_report();
	}
	return 0;
}
