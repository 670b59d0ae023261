/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the machine itself needs to move memory from one process to another over TCP: bytes are sent from where they
 * are, and received into fresh memory of small pages. Nothing is looked at, found, checked or noted.
 *
 *	limits_move take ADDRESS PORT MIB   says "ready", receives over two connections, and ends
 *	limits_move send ADDRESS PORT MIB   prints the nanoseconds until the other side has all of it
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 2, PIECE = 1 << 20 };

struct share {
	pthread_t thread;
	char *memory;
	size_t bytes;
	int fd;
};

static void die(const char *what)
{
	fprintf(stderr, "limits_move: %s: %m\n", what);
	exit(1);
}

static void *send_share(void *argument)
{
	struct share *share = argument;
	char done;

	for (size_t at = 0; at < share->bytes;) {
		size_t left = share->bytes - at;
		ssize_t sent = send(share->fd, share->memory + at, left < PIECE ? left : PIECE, MSG_NOSIGNAL);
		if (sent <= 0)
			die("send");
		at += (size_t)sent;
	}
	if (recv(share->fd, &done, 1, 0) != 1)
		die("the other side");
	return NULL;
}

static void *take_share(void *argument)
{
	struct share *share = argument;

	for (size_t at = 0; at < share->bytes;) {
		size_t left = share->bytes - at;
		ssize_t got = recv(share->fd, share->memory + at, left < PIECE ? left : PIECE, 0);
		if (got <= 0)
			die("recv");
		at += (size_t)got;
	}
	if (send(share->fd, "d", 1, MSG_NOSIGNAL) != 1)
		die("send");
	return NULL;
}

static char *map(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("memory");
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	return memory;
}

static void connect_all(struct share *shares, const struct sockaddr_in *name)
{
	for (int i = 0; i < CONNECTIONS; i++) {
		shares[i].fd = socket(AF_INET, SOCK_STREAM, 0);
		if (shares[i].fd < 0 || connect(shares[i].fd, (const struct sockaddr *)name, sizeof(*name)) < 0)
			die("connect");
	}
}

static void accept_all(struct share *shares, const struct sockaddr_in *name)
{
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (listener < 0 || bind(listener, (const struct sockaddr *)name, sizeof(*name)) < 0 ||
	    listen(listener, CONNECTIONS) < 0)
		die("listen");
	printf("ready\n");
	fflush(stdout);
	for (int i = 0; i < CONNECTIONS; i++) {
		shares[i].fd = accept(listener, NULL, NULL);
		if (shares[i].fd < 0)
			die("accept");
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in name = {.sin_family = AF_INET};
	struct share shares[CONNECTIONS] = {};
	struct timespec begin, end;

	if (argc != 5 || !inet_aton(argv[2], &name.sin_addr))
		die("usage: limits_move take|send ADDRESS PORT MIB");
	int takes = !strcmp(argv[1], "take");
	size_t bytes = strtoul(argv[4], NULL, 10) << 20;
	char *memory = map(bytes);
	name.sin_port = htons(strtoul(argv[3], NULL, 10));
	if (!takes)
		memset(memory, 5, bytes);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	if (takes)
		accept_all(shares, &name);
	else
		connect_all(shares, &name);
	for (int i = 0; i < CONNECTIONS; i++) {
		shares[i].bytes = bytes / CONNECTIONS;
		shares[i].memory = memory + i * shares[i].bytes;
		if ((errno = pthread_create(&shares[i].thread, NULL, takes ? take_share : send_share, &shares[i])))
			die("thread");
	}
	for (int i = 0; i < CONNECTIONS; i++)
		pthread_join(shares[i].thread, NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (!takes)
		printf("%lld\n", (end.tv_sec - begin.tv_sec) * 1000000000LL + (end.tv_nsec - begin.tv_nsec));
	return 0;
}
