/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening unix sockets: by path and by abstract name, connections that were accepted (between processes, too),
 * connections that wait for accept(), and new ones after the restore.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct server {
	struct sockaddr_un name;
	socklen_t length;
	int type, listener, client, accepted, waiting;
};

static int connect_to(const struct server *server)
{
	int fd = MUST(socket(AF_UNIX, server->type, 0));

	if (connect(fd, (const struct sockaddr *)&server->name, server->length) < 0) {
		CHECK(false, "connect: errno %d", errno);
		close(fd);
		return -1;
	}
	return fd;
}

static void start(struct server *server, int type, const char *text, bool abstract)
{
	server->type = type;
	server->name.sun_family = AF_UNIX;
	strcpy(server->name.sun_path + abstract, text);
	server->length = offsetof(struct sockaddr_un, sun_path) + strlen(text) + 1;
	server->listener = MUST(socket(AF_UNIX, type, 0));
	MUST(bind(server->listener, (struct sockaddr *)&server->name, server->length));
	MUST(listen(server->listener, 5));
	server->client = connect_to(server);
	server->accepted = MUST(accept(server->listener, NULL, NULL));
	MUST(send(server->accepted, "welcome", 7, 0));
	MUST(send(server->client, "thanks", 6, 0));
	server->waiting = connect_to(server);
}

static bool is_name(const struct server *server, int fd, bool of_peer)
{
	struct sockaddr_un name;
	socklen_t length = sizeof(name);

	if ((of_peer ? getpeername : getsockname)(fd, (struct sockaddr *)&name, &length) < 0)
		return false;
	return length == server->length && !memcmp(&name, &server->name, length);
}

static void check_text(int fd, const char *text)
{
	char buffer[16] = "";
	ssize_t count = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT | MSG_PEEK);

	CHECK(count == (ssize_t)strlen(text) && !memcmp(buffer, text, count), "\"%s\", not \"%s\"", buffer, text);
}

static void check_user(int fd)
{
	struct ucred credentials;
	socklen_t length = sizeof(credentials);

	CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 && credentials.uid == getuid() &&
		      credentials.gid == getgid() && credentials.pid == getpid(),
	      "pid %d uid %d gid %d", credentials.pid, credentials.uid, credentials.gid);
}

static void check_server(struct server *server)
{
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);
	int value = 0;
	socklen_t size = sizeof(value);

	CHECK(getsockopt(server->listener, SOL_SOCKET, SO_ACCEPTCONN, &value, &size) == 0 && value == 1);
	CHECK(is_name(server, server->listener, false));
	CHECK(is_name(server, server->accepted, false));
	CHECK(is_name(server, server->client, true));
	CHECK(is_name(server, server->waiting, true));
	CHECK(getpeername(server->accepted, (struct sockaddr *)&name, &length) == 0 && length == 2);
	check_text(server->client, "welcome");
	check_text(server->accepted, "thanks");
	check_user(server->client);
	check_user(server->accepted);

	/* The one that waits is accepted, another takes its place. */
	MUST(fcntl(server->listener, F_SETFL, O_NONBLOCK));
	int accepted = accept(server->listener, NULL, NULL);
	CHECK(accepted >= 0, "errno %d", errno);
	CHECK(accept(server->listener, NULL, NULL) < 0 && errno == EAGAIN);
	CHECK(send(server->waiting, "late", 4, 0) == 4);
	check_text(accepted, "late");
	check_user(accepted);
	close(accepted);
	close(server->waiting);
	server->waiting = connect_to(server);
	MUST(fcntl(server->listener, F_SETFL, 0));
}

static struct server by_path, by_abstract, packets, far;

/* In the child: the client of a connection that the parent accepted. */
static void as_client(void *argument)
{
	CHECK(is_name(&far, far.client, true));
	CHECK(send(far.client, "from afar", 9, 0) == 9);
	check_text(far.client, "welcome");
}

int main(void)
{
	char abstract_name[40], word[16];
	struct stat stat_before, stat_now;

	snprintf(abstract_name, sizeof(abstract_name), "criu-listen-%d", getpid());
	start(&by_path, SOCK_STREAM, "stream.sock", false);
	start(&by_abstract, SOCK_STREAM, abstract_name, true);
	start(&packets, SOCK_SEQPACKET, "packets.sock", false);
	start(&far, SOCK_STREAM, "far.sock", false);
	MUST(recv(far.accepted, word, sizeof(word), 0));
	harness_start_child(as_client, NULL);
	MUST(close(far.client));
	MUST(chmod("stream.sock", 0620));
	MUST(chown("stream.sock", 12, 34));
	MUST(stat("stream.sock", &stat_before));

	harness_ready();
	while (harness_wait_check()) {
		check_server(&by_path);
		check_server(&by_abstract);
		check_server(&packets);
		CHECK(stat("stream.sock", &stat_now) == 0 && stat_now.st_mode == stat_before.st_mode &&
			      stat_now.st_uid == 12 && stat_now.st_gid == 34,
		      "mode %o owner %u:%u", stat_now.st_mode, stat_now.st_uid, stat_now.st_gid);
		harness_check_children();
		CHECK(is_name(&far, far.accepted, false));
		CHECK(recv(far.accepted, word, sizeof(word), 0) == 9 && !memcmp(word, "from afar", 9));
		harness_report();
	}
	return 0;
}
