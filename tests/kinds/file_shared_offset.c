/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One open file description shared by dup, by fork and by SCM_RIGHTS stays one; two openings of one file stay two.
 */
#include "harness.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define INHERITED 50
#define RECEIVED 60

/* What the child saw of the shared positions, and where it moves them. */
struct shared {
	off_t inherited, received;
};

static struct shared *shared;

static void send_descriptor(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte = 0;
	struct iovec data = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	MUST(sendmsg(socket, &message, 0));
}

static int receive_descriptor(int socket)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte;
	struct iovec data = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	int fd = -1;

	MUST(recvmsg(socket, &message, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* In the child: it looks where the descriptors are and moves them on. */
static void move(void *argument)
{
	int *socket = argument;

	if (*socket >= 0) {
		MUST(dup2(receive_descriptor(*socket), RECEIVED));
		close(*socket);
		*socket = -1;
	}
	shared->inherited = lseek(INHERITED, 0, SEEK_CUR);
	shared->received = lseek(RECEIVED, 0, SEEK_CUR);
	CHECK(lseek(INHERITED, 10, SEEK_CUR) == shared->inherited + 10);
	CHECK(lseek(RECEIVED, 100, SEEK_CUR) == shared->received + 100);
}

int main(void)
{
	int sockets[2];

	shared = MUST((struct shared *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	int fd = MUST(open("file", O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(ftruncate(fd, 1 << 20));
	MUST(dup2(fd, INHERITED));
	int duplicate = MUST(dup(fd));
	int separate = MUST(open("file", O_RDWR));
	int sent = MUST(open("file", O_RDONLY));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets));
	harness_start_child(move, &sockets[1]);
	send_descriptor(sockets[0], sent);
	/* The child takes it at its first check. */
	close(sockets[1]);
	close(INHERITED);

	harness_ready();
	while (harness_wait_check()) {
		off_t before = lseek(fd, 0, SEEK_CUR), sent_before = lseek(sent, 0, SEEK_CUR);
		CHECK(lseek(separate, 0, SEEK_CUR) == 0);
		CHECK(lseek(duplicate, 0, SEEK_CUR) == before);
		harness_check_children();
		CHECK(shared->inherited == before && shared->received == sent_before, "the child saw %ld and %ld",
		      shared->inherited, shared->received);
		CHECK(lseek(fd, 0, SEEK_CUR) == before + 10 && lseek(duplicate, 0, SEEK_CUR) == before + 10);
		CHECK(lseek(sent, 0, SEEK_CUR) == sent_before + 100);
		/* Status flags belong to the description too. */
		CHECK(!fcntl(duplicate, F_SETFL, O_APPEND) && (fcntl(fd, F_GETFL) & O_APPEND) &&
		      !(fcntl(separate, F_GETFL) & O_APPEND));
		CHECK(!fcntl(fd, F_SETFL, 0) && !(fcntl(duplicate, F_GETFL) & O_APPEND));
		harness_report();
	}
	return 0;
}
