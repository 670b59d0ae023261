/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix sockets that keep packets apart: seqpacket and datagram pairs, a named datagram socket whose queue holds
 * datagrams of several senders (one is gone, one has credentials), datagram sockets connected to names.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static socklen_t make_name(struct sockaddr_un *name, const char *text, bool abstract)
{
	memset(name, 0, sizeof(*name));
	name->sun_family = AF_UNIX;
	strcpy(name->sun_path + abstract, text);
	return offsetof(struct sockaddr_un, sun_path) + strlen(text) + 1;
}

static int datagram_socket(const char *text, bool abstract)
{
	struct sockaddr_un name;
	int fd = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));

	if (text)
		MUST(bind(fd, (struct sockaddr *)&name, make_name(&name, text, abstract)));
	return fd;
}

static void send_to(int fd, const char *text, const char *to, bool abstract)
{
	struct sockaddr_un name;
	socklen_t length = make_name(&name, to, abstract);

	CHECK(sendto(fd, text, strlen(text), MSG_DONTWAIT, (struct sockaddr *)&name, length) == (ssize_t)strlen(text),
	      "%s: errno %d", text, errno);
}

/* Takes a packet, checks text and sender's name (NULL = none). */
static void take(int fd, const char *text, const char *sender, bool abstract, int line)
{
	char buffer[64] = "";
	struct sockaddr_un name = {}, expected = {};
	socklen_t length = sizeof(name), expected_length = sender ? make_name(&expected, sender, abstract) : 0;
	ssize_t count = recvfrom(fd, buffer, sizeof(buffer), MSG_DONTWAIT, (struct sockaddr *)&name, &length);

	CHECK(count == (ssize_t)strlen(text) && !memcmp(buffer, text, count), "line %d: %zd \"%s\", not \"%s\"", line,
	      count, buffer, text);
	CHECK(length == expected_length && !memcmp(&name, &expected, length), "line %d: sender %d \"%s\"", line, length,
	      name.sun_path + abstract);
}

static void fill_pair(int fd)
{
	CHECK(send(fd, "one", 3, MSG_DONTWAIT) == 3);
	CHECK(send(fd, "", 0, MSG_DONTWAIT) == 0);
	CHECK(send(fd, "three", 5, MSG_DONTWAIT) == 5);
}

static void take_pair(int fd, int line)
{
	char byte;

	take(fd, "one", NULL, false, line);
	take(fd, "", NULL, false, line);
	take(fd, "three", NULL, false, line);
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "line %d", line);
}

struct credentials_packet {
	char control[CMSG_SPACE(sizeof(struct ucred))] __attribute__((aligned(8)));
	char text[16];
	struct iovec part;
	struct msghdr message;
};

static void take_credentials(int fd)
{
	struct credentials_packet packet = {.part = {packet.text, sizeof(packet.text)}};
	struct ucred credentials = {};

	packet.message = (struct msghdr){.msg_iov = &packet.part,
					 .msg_iovlen = 1,
					 .msg_control = packet.control,
					 .msg_controllen = sizeof(packet.control)};
	CHECK(recvmsg(fd, &packet.message, MSG_DONTWAIT) == 2 && !memcmp(packet.text, "me", 2));
	struct cmsghdr *part = CMSG_FIRSTHDR(&packet.message);
	if (part && part->cmsg_type == SCM_CREDENTIALS)
		memcpy(&credentials, CMSG_DATA(part), sizeof(credentials));
	CHECK(credentials.pid == getpid() && credentials.uid == getuid(), "pid %d uid %d", credentials.pid,
	      credentials.uid);
}

int main(void)
{
	int seqpacket[2], datagram[2], shut[2], trusting[2], on = 1;
	struct sockaddr_un name;

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seqpacket));
	MUST(send(seqpacket[0], "packet", 6, 0));
	MUST(send(seqpacket[0], "another", 7, 0));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, shut));
	MUST(send(shut[0], "the end", 7, 0));
	MUST(shutdown(shut[0], SHUT_WR));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram));
	fill_pair(datagram[0]);
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, trusting));
	MUST(setsockopt(trusting[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	MUST(send(trusting[0], "me", 2, 0));

	char abstract_name[32], sender_name[32];
	snprintf(abstract_name, sizeof(abstract_name), "criu-test-%d", getpid());
	snprintf(sender_name, sizeof(sender_name), "criu-sender-%d", getpid());
	int receiver = datagram_socket("receiver", false), abstract_receiver = datagram_socket(abstract_name, true);
	int by_path = datagram_socket("sender", false), by_abstract = datagram_socket(sender_name, true);
	int unnamed = datagram_socket(NULL, false), connected = datagram_socket(NULL, false);
	int connected_abstract = datagram_socket("connected", false);
	MUST(connect(connected, (struct sockaddr *)&name, make_name(&name, "receiver", false)));
	MUST(connect(connected_abstract, (struct sockaddr *)&name, make_name(&name, abstract_name, true)));

	bool first = true;
	harness_ready();
	while (harness_wait_check()) {
		char buffer[16];

		take(seqpacket[1], "packet", NULL, false, __LINE__);
		take(seqpacket[1], "another", NULL, false, __LINE__);
		CHECK(send(seqpacket[0], "packet", 6, MSG_DONTWAIT) == 6);
		CHECK(send(seqpacket[0], "another", 7, MSG_DONTWAIT) == 7);
		CHECK(recv(shut[1], buffer, sizeof(buffer), MSG_DONTWAIT | MSG_PEEK) == 7);
		CHECK(send(shut[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
		take_pair(datagram[1], __LINE__);
		fill_pair(datagram[0]);
		take_credentials(trusting[1]);
		CHECK(send(trusting[0], "me", 2, MSG_DONTWAIT) == 2);

		if (!first) {
			take(receiver, "by path", "sender", false, __LINE__);
			take(receiver, "by abstract", sender_name, true, __LINE__);
			take(receiver, "unnamed", NULL, false, __LINE__);
			take(receiver, "gone", "gone-sender", false, __LINE__);
		}
		first = false;
		CHECK(send(connected, "hello", 5, MSG_DONTWAIT) == 5);
		take(receiver, "hello", NULL, false, __LINE__);
		CHECK(send(connected_abstract, "hello", 5, MSG_DONTWAIT) == 5);
		take(abstract_receiver, "hello", "connected", false, __LINE__);
		send_to(by_path, "by path", "receiver", false);
		send_to(by_abstract, "by abstract", "receiver", false);
		send_to(unnamed, "unnamed", "receiver", false);
		int gone = datagram_socket("gone-sender", false);
		send_to(gone, "gone", "receiver", false);
		close(gone);
		unlink("gone-sender");
		harness_report();
	}
	return 0;
}
