/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes: content, capacity, flags, packets, ends that are closed, ends opened again, ends in a child.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CAPACITY 262144
#define MANY 200

static void put(int fd, const char *text)
{
	MUST(write(fd, text, strlen(text)));
}

/* The content must be @text and is put back. */
static void check_content(int reader, int writer, const char *text)
{
	char buffer[256];

	CHECK(poll(&(struct pollfd){.fd = reader, .events = POLLIN}, 1, 0) == 1, "nothing in %d", reader);
	ssize_t got = read(reader, buffer, sizeof(buffer));
	CHECK(got == (ssize_t)strlen(text) && !memcmp(buffer, text, got), "got %zd bytes of \"%s\"", got, text);
	CHECK(write(writer, text, strlen(text)) == (ssize_t)strlen(text));
}

static void check_full(int reader, int writer, char *pattern, size_t size)
{
	static char found[CAPACITY];
	size_t count = 0;

	while (count < size) {
		ssize_t got = read(reader, found + count, size - count);
		if (got <= 0)
			break;
		count += got;
	}
	CHECK(count == size && !memcmp(found, pattern, size), "%zu of %zu bytes", count, size);
	CHECK(poll(&(struct pollfd){.fd = reader, .events = POLLIN}, 1, 0) == 0, "more than was written");
	CHECK(write(writer, pattern, size) == (ssize_t)size);
}

static void check_packets(int reader, int writer)
{
	static const char *const packets[] = {"one", "second", "3"};
	char buffer[256];

	for (int i = 0; i < 3; i++) {
		ssize_t got = read(reader, buffer, sizeof(buffer));
		CHECK(got == (ssize_t)strlen(packets[i]) && !memcmp(buffer, packets[i], got), "packet %d: %zd", i, got);
	}
	for (int i = 0; i < 3; i++)
		put(writer, packets[i]);
}

static bool can_reopen(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, flags | O_CLOEXEC);
	if (again >= 0)
		close(again);
	return again >= 0;
}

static ino_t inode(int fd)
{
	struct stat stat = {};

	fstat(fd, &stat);
	return stat.st_ino;
}

static void check_in_child(void *argument)
{
	int *ends = argument;
	char byte = 0;

	/* The parent's end is the same open file: its O_NONBLOCK is seen here. */
	CHECK(fcntl(ends[0], F_GETFL) & O_NONBLOCK);
	CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x', "got %d", byte);
	CHECK(read(ends[0], &byte, 1) == -1 && errno == EAGAIN);
}

static char pattern[CAPACITY];

int main(void)
{
	int plain[2], big[2], packet[2], unread[2], finished[2], both[2], shared[2], many[MANY][2];
	char path[32], byte;

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = i * 7 + i / 4096;
	MUST(pipe(plain));
	put(plain[1], "in the ");
	put(plain[1], "pipe");
	MUST(pipe(big));
	MUST(fcntl(big[1], F_SETPIPE_SZ, CAPACITY));
	MUST(write(big[1], pattern, CAPACITY));
	MUST(pipe2(packet, O_DIRECT | O_CLOEXEC));
	put(packet[1], "one");
	put(packet[1], "second");
	put(packet[1], "3");
	MUST(pipe(unread));
	MUST(close(unread[0]));
	MUST(pipe(finished));
	put(finished[1], "the end");
	MUST(close(finished[1]));
	MUST(pipe(both));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", both[0]);
	int again = MUST(open(path, O_RDWR | O_NONBLOCK));
	MUST(close(both[0]));
	MUST(close(both[1]));
	put(again, "round");
	MUST(pipe2(shared, O_NONBLOCK));
	harness_start_child(check_in_child, shared);
	for (int i = 0; i < MANY; i++) {
		MUST(pipe(many[i]));
		MUST(dprintf(many[i][1], "pipe %d", i));
	}
	ino_t ends_of_one = inode(plain[0]);
	MUST(ends_of_one == inode(plain[1]) ? 0 : -1);

	harness_ready();
	for (bool first = true; harness_wait_check(); first = false) {
		check_content(plain[0], plain[1], "in the pipe");
		CHECK(inode(plain[0]) == inode(plain[1]), "the ends are of different pipes");
		CHECK((fcntl(plain[0], F_GETFL) & O_ACCMODE) == O_RDONLY &&
		      (fcntl(plain[1], F_GETFL) & O_ACCMODE) == O_WRONLY);
		CHECK(write(plain[0], "x", 1) == -1 && errno == EBADF);
		CHECK(read(plain[1], &byte, 1) == -1 && errno == EBADF);
		CHECK(can_reopen(plain[0], O_RDONLY) && can_reopen(plain[1], O_WRONLY));
		CHECK(fcntl(big[0], F_GETPIPE_SZ) == CAPACITY, "%d", fcntl(big[0], F_GETPIPE_SZ));
		check_full(big[0], big[1], pattern, CAPACITY);
		CHECK(fcntl(packet[1], F_GETFL) & O_DIRECT);
		CHECK(fcntl(packet[1], F_GETFD) == FD_CLOEXEC && fcntl(plain[1], F_GETFD) == 0);
		check_packets(packet[0], packet[1]);
		CHECK(write(unread[1], "x", 1) == -1 && errno == EPIPE, "a writer without readers");
		if (first) {
			char text[16] = "";
			CHECK(read(finished[0], text, sizeof(text)) == 7 && !strcmp(text, "the end"), "\"%s\"", text);
		}
		CHECK(read(finished[0], &byte, 1) == 0, "a reader without writers");
		CHECK((fcntl(again, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK));
		check_content(again, again, "round");
		put(shared[1], "x");
		harness_check_children();
		for (int i = 0; i < MANY; i++) {
			snprintf(path, sizeof(path), "pipe %d", i);
			check_content(many[i][0], many[i][1], path);
		}
		harness_report();
	}
	return 0;
}
