/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/door.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"

static const uint8_t preamble_magic[8] = {'C', 'R', 'I', 'U', 'M', 'I', 'G', 1};
enum { KIND_AT = 8, ID_AT = 16, DOOR_WAIT_MS = 5000 };

void preamble_encode(enum preamble_kind kind, const uint8_t id[SESSION_ID_BYTES], uint8_t bytes[PREAMBLE_BYTES])
{
	memset(bytes, 0, PREAMBLE_BYTES);
	memcpy(bytes, preamble_magic, sizeof(preamble_magic));
	bytes[KIND_AT] = (uint8_t)kind;
	memcpy(bytes + ID_AT, id, SESSION_ID_BYTES);
}

int preamble_decode(const uint8_t bytes[PREAMBLE_BYTES], enum preamble_kind *ret_kind, uint8_t ret_id[SESSION_ID_BYTES])
{
	static const uint8_t zeros[ID_AT - KIND_AT - 1];

	if (memcmp(bytes, preamble_magic, sizeof(preamble_magic)) || memcmp(bytes + KIND_AT + 1, zeros, sizeof(zeros)))
		return -EPROTO;
	if (bytes[KIND_AT] < PREAMBLE_CONTROL || bytes[KIND_AT] >= PREAMBLE_KIND_COUNT)
		return -EPROTO;
	*ret_kind = bytes[KIND_AT];
	memcpy(ret_id, bytes + ID_AT, SESSION_ID_BYTES);
	return 0;
}

void session_id_text(const uint8_t id[SESSION_ID_BYTES], char text[2 * SESSION_ID_BYTES + 1])
{
	for (size_t i = 0; i < SESSION_ID_BYTES; i++)
		sprintf(text + 2 * i, "%02x", id[i]);
}

int session_id_parse(const char *text, uint8_t ret_id[SESSION_ID_BYTES])
{
	static const char digits[] = "0123456789abcdef";
	uint8_t id[SESSION_ID_BYTES];

	if (strlen(text) != 2 * SESSION_ID_BYTES || strspn(text, digits) != 2 * SESSION_ID_BYTES)
		return -EINVAL;
	for (size_t i = 0; i < SESSION_ID_BYTES; i++)
		id[i] = (uint8_t)((strchr(digits, text[2 * i]) - digits) << 4 |
				  (strchr(digits, text[2 * i + 1]) - digits));
	memcpy(ret_id, id, sizeof(id));
	return 0;
}

static socklen_t door_name(const uint8_t id[SESSION_ID_BYTES], struct sockaddr_un *name)
{
	char text[2 * SESSION_ID_BYTES + 1];

	session_id_text(id, text);
	*name = (struct sockaddr_un){.sun_family = AF_UNIX};
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
			   snprintf(name->sun_path + 1, sizeof(name->sun_path) - 1, "criu-receive-%s", text));
}

int door_open(const uint8_t id[SESSION_ID_BYTES], int *ret_fd)
{
	struct sockaddr_un name;
	socklen_t size = door_name(id, &name);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&name, size) < 0 || listen(fd, 2 * MIGRATE_MAX_CONNECTIONS) < 0)
		return -errno;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* Only root and the user of this process may come in. */
static int check_user(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	return peer.uid == 0 || peer.uid == geteuid() ? 0 : -EPERM;
}

static int receive_fds(int fd, uint8_t *kind, int ret_fds[2])
{
	struct pollfd wait = {.fd = fd, .events = POLLIN};
	struct iovec part = {kind, 1};
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr aligned;
	} control;
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};

	if (poll(&wait, 1, DOOR_WAIT_MS) <= 0)
		return -ETIMEDOUT;
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1)
		return -EPROTO;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
	    header->cmsg_len != CMSG_LEN(2 * sizeof(int)))
		return -EPROTO;
	memcpy(ret_fds, CMSG_DATA(header), 2 * sizeof(int));
	return 0;
}

int door_accept(int door_fd, enum preamble_kind *ret_kind, int ret_fds[2], int *ret_holder)
{
	_cleanup_fd_ int fd = accept4(door_fd, NULL, NULL, SOCK_CLOEXEC);
	uint8_t kind;

	if (fd < 0)
		return -errno;
	int r = check_user(fd);
	if (r < 0)
		return r;
	r = receive_fds(fd, &kind, ret_fds);
	if (r < 0)
		return r;
	if (kind >= PREAMBLE_KIND_COUNT) {
		close(ret_fds[0]);
		close(ret_fds[1]);
		return -EPROTO;
	}
	*ret_kind = kind;
	*ret_holder = TAKE_FD(fd);
	return 0;
}

int door_pass(const uint8_t id[SESSION_ID_BYTES], enum preamble_kind kind, int read_fd, int write_fd, int *ret_holder)
{
	uint8_t byte = (uint8_t)kind;
	struct iovec part = {&byte, 1};
	const int fds[2] = {read_fd, write_fd};
	union {
		char bytes[CMSG_SPACE(sizeof(fds))];
		struct cmsghdr aligned;
	} control = {};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct sockaddr_un name;
	socklen_t size = door_name(id, &name);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&name, size) < 0)
		return -errno;
	int r = check_user(fd);
	if (r < 0)
		return r;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(header), fds, sizeof(fds));
	if (sendmsg(fd, &message, MSG_NOSIGNAL) != 1)
		return -errno;
	*ret_holder = TAKE_FD(fd);
	return 0;
}
