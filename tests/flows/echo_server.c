/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server of many threads or many processes: echo_server PORT threads|processes COUNT. All wait in accept(2) on one
 * socket. For each line "TEXT" of a connection the answer is "SUM TEXT", SUM being over 10 MiB that all share since
 * before they were made: it changes when a byte of it is lost. Processes form a tree of fan-out 8.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHARED_WORDS (10UL * 1024 * 1024 / 8)
#define FAN_OUT 8

static uint64_t *shared;
static int listener;

static void die(const char *what)
{
	fprintf(stderr, "echo_server: %s: %m\n", what);
	exit(1);
}

/* A part of the whole, so that an answer is quick: every worker looks at another one each time. */
static uint64_t sum_part(unsigned int part)
{
	uint64_t sum = 0;
	size_t words = SHARED_WORDS / 64, start = part % 64 * words;

	for (size_t i = start; i < start + words; i++)
		sum += shared[i] ^ i;
	return sum;
}

static void serve_connection(int connection)
{
	char line[4096], answer[4200];
	unsigned int part = 0;
	FILE *input = fdopen(connection, "r");

	while (input && fgets(line, sizeof(line), input)) {
		int length = snprintf(answer, sizeof(answer), "%llx %s", (unsigned long long)sum_part(part++), line);
		if (write(connection, answer, length) != length)
			break;
	}
	if (input)
		fclose(input);
	else
		close(connection);
}

static void *serve(void *argument)
{
	for (;;) {
		int connection = accept(listener, NULL, NULL);
		if (connection >= 0)
			serve_connection(connection);
		else if (errno != EINTR && errno != ECONNABORTED)
			die("accept");
	}
	return NULL;
}

static void listen_on(int port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_ANY)};
	int one = 1;

	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 1024) < 0)
		die("listen");
}

static void start_threads(long count)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (long i = 1; i < count; i++)
		if ((errno = pthread_create(&thread, &attributes, serve, NULL)))
			die("thread");
}

/* This process and all below it are @count. */
static void start_processes(long count)
{
	long left = count - 1;

	for (int i = 0; i < FAN_OUT && left > 0; i++) {
		long share = (left + FAN_OUT - i - 1) / (FAN_OUT - i);
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0) {
			start_processes(share);
			return;
		}
		left -= share;
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		die("usage: echo_server PORT threads|processes COUNT");
	shared = mmap(NULL, SHARED_WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("memory");
	for (size_t i = 0; i < SHARED_WORDS; i++)
		shared[i] = i * 0x9e3779b97f4a7c15ULL;
	listen_on(atoi(argv[1]));
	if (!strcmp(argv[2], "threads"))
		start_threads(atol(argv[3]));
	else
		start_processes(atol(argv[3]));
	serve(NULL);
	return 0;
}
