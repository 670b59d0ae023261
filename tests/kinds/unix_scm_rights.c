/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors in flight: sent over a unix socket and not received yet. One whose open file the program also has, one
 * that nobody else has (a pipe with data), and a unix socket whose own queue holds another descriptor.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void send_fds(int socket, const char *text, const int *fds, size_t count)
{
	char control[CMSG_SPACE(4 * sizeof(int))] __attribute__((aligned(8))) = {};
	struct iovec part = {(char *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = CMSG_SPACE(count * sizeof(int))};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), fds, count * sizeof(int));
	CHECK(sendmsg(socket, &message, MSG_DONTWAIT) == (ssize_t)strlen(text), "errno %d", errno);
}

static size_t receive_fds(int socket, const char *text, int *fds, size_t size)
{
	char control[CMSG_SPACE(4 * sizeof(int))] __attribute__((aligned(8))) = {}, buffer[64] = "";
	struct iovec part = {buffer, sizeof(buffer)};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	ssize_t length = recvmsg(socket, &message, MSG_DONTWAIT);
	struct cmsghdr *header = length >= 0 ? CMSG_FIRSTHDR(&message) : NULL;

	CHECK(length == (ssize_t)strlen(text) && !memcmp(buffer, text, length), "%zd \"%s\", not \"%s\"", length,
	      buffer, text);
	size_t count = header && header->cmsg_type == SCM_RIGHTS ? (header->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	memset(fds, 0xff, size * sizeof(int));
	if (count)
		memcpy(fds, CMSG_DATA(header), (count < size ? count : size) * sizeof(int));
	return count;
}

static int stream[2], packets[2], file;

/* Puts everything in flight. */
static void fill(void)
{
	int pipe_fds[2], inner[2];

	CHECK(send(stream[0], "before", 6, MSG_DONTWAIT) == 6);
	MUST(pipe(pipe_fds));
	MUST(write(pipe_fds[1], "in a pipe", 9));
	send_fds(stream[0], "pipe", pipe_fds, 2);
	CHECK(send(stream[0], "after", 5, MSG_DONTWAIT) == 5);
	close(pipe_fds[0]);
	close(pipe_fds[1]);

	CHECK(send(packets[0], "plain", 5, MSG_DONTWAIT) == 5);
	send_fds(packets[0], "file", &file, 1);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
	send_fds(inner[0], "nested", &file, 1);
	send_fds(packets[0], "socket", &inner[1], 1);
	close(inner[0]);
	close(inner[1]);
}

static void check_same_file(int fd)
{
	CHECK(lseek(file, 5, SEEK_SET) == 5);
	CHECK(lseek(fd, 0, SEEK_CUR) == 5, "not the same open file");
	CHECK(lseek(file, 3, SEEK_SET) == 3);
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void take_stream(void)
{
	char text[16] = "";
	int fds[4];

	CHECK(recv(stream[1], text, 6, MSG_DONTWAIT) == 6 && !memcmp(text, "before", 6), "\"%s\"", text);
	CHECK(receive_fds(stream[1], "pipe", fds, 4) == 2);
	CHECK(read(fds[0], text, sizeof(text)) == 9 && !memcmp(text, "in a pipe", 9), "\"%s\"", text);
	CHECK(write(fds[1], "more", 4) == 4);
	CHECK(read(fds[0], text, sizeof(text)) == 4 && !memcmp(text, "more", 4));
	CHECK(recv(stream[1], text, sizeof(text), MSG_DONTWAIT) == 5 && !memcmp(text, "after", 5), "\"%s\"", text);
	close_fd(fds[0]);
	close_fd(fds[1]);
}

static void take_packets(void)
{
	char text[16] = "";
	int fds[4], inner;

	CHECK(recv(packets[1], text, sizeof(text), MSG_DONTWAIT) == 5 && !memcmp(text, "plain", 5));
	CHECK(receive_fds(packets[1], "file", fds, 4) == 1);
	check_same_file(fds[0]);
	close_fd(fds[0]);
	CHECK(receive_fds(packets[1], "socket", fds, 4) == 1);
	inner = fds[0];
	CHECK(receive_fds(inner, "nested", fds, 4) == 1);
	check_same_file(fds[0]);
	close_fd(fds[0]);
	CHECK(recv(inner, text, sizeof(text), MSG_DONTWAIT) == 0, "errno %d", errno);
	close_fd(inner);
}

int main(void)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
	file = MUST(open("file", O_RDWR | O_CREAT, 0600));
	MUST(write(file, "content", 7));
	fill();

	harness_ready();
	while (harness_wait_check()) {
		take_stream();
		take_packets();
		fill();
		harness_report();
	}
	return 0;
}
