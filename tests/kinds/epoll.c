/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event polls: watched pipes, eventfds, sockets and epolls; edges, one-shots, numbers that were closed or used again.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static void add(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data.u64 = data};

	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

/* Exactly one event waits: @data with @events. */
static void check_one(int epoll, uint32_t events, uint64_t data)
{
	struct epoll_event found[4] = {};
	int count = epoll_wait(epoll, found, 4, 0);

	CHECK(count == 1 && found[0].data.u64 == data && found[0].events == events, "%d events, data %lx events %x",
	      count, (uint64_t)found[0].data.u64, found[0].events);
}

static void check_none(int epoll)
{
	struct epoll_event found;
	int count = epoll_wait(epoll, &found, 1, 0);

	CHECK(count == 0, "%d: data %lx events %x", count, (uint64_t)found.data.u64, found.events);
}

int main(void)
{
	int level = MUST(epoll_create1(EPOLL_CLOEXEC)), outer = MUST(epoll_create1(0)), edge = MUST(epoll_create1(0));
	int once = MUST(epoll_create1(0)), moved = MUST(epoll_create1(0)), reused = MUST(epoll_create1(0));
	int counter = MUST(eventfd(0, EFD_NONBLOCK)), other = MUST(eventfd(0, EFD_NONBLOCK));
	int pair[2], pipes[2], kept, number;
	uint64_t value;

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
	MUST(pipe2(pipes, O_NONBLOCK));
	add(level, counter, EPOLLIN, 0x1122334455667788);
	add(level, pair[0], EPOLLIN | EPOLLRDHUP, 2);
	add(level, pipes[0], EPOLLIN | EPOLLEXCLUSIVE, 3);
	add(outer, level, EPOLLIN, 4);
	add(edge, counter, EPOLLIN | EPOLLET, 5);

	/* A one-shot that has fired, and one that waits. */
	add(once, other, EPOLLOUT | EPOLLONESHOT, 6);
	check_one(once, EPOLLOUT, 6);
	add(once, counter, EPOLLIN | EPOLLONESHOT, 7);

	/* Watched under a number that was closed; the file lives on under another. */
	number = MUST(eventfd(0, EFD_NONBLOCK));
	kept = MUST(fcntl(number, F_DUPFD, 500));
	add(moved, number, EPOLLIN, 8);
	MUST(close(number));

	/* Watched under a number that is another eventfd's now. */
	int first = MUST(eventfd(0, EFD_NONBLOCK));
	int first_kept = MUST(fcntl(first, F_DUPFD, 600));
	add(reused, first, EPOLLIN, 9);
	MUST(close(first));
	int second = MUST(eventfd(0, EFD_NONBLOCK));
	if (second != first) {
		MUST(dup2(second, first));
		close(second);
		second = first;
	}
	add(reused, second, EPOLLIN, 10);

	harness_ready();
	while (harness_wait_check()) {
		struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 7};
		check_none(level);
		check_none(outer);
		CHECK(eventfd_write(counter, 1) == 0);
		check_one(level, EPOLLIN, 0x1122334455667788);
		check_one(outer, EPOLLIN, 4);
		check_one(edge, EPOLLIN, 5);
		check_none(edge);
		check_one(once, EPOLLIN, 7);
		CHECK(epoll_ctl(once, EPOLL_CTL_MOD, counter, &event) == 0);
		CHECK(eventfd_read(counter, &value) == 0);
		check_none(once);
		check_none(level);
		CHECK(write(pair[1], "x", 1) == 1);
		check_one(level, EPOLLIN, 2);
		CHECK(read(pair[0], &value, 1) == 1);
		CHECK(write(pipes[1], "x", 1) == 1);
		check_one(level, EPOLLIN, 3);
		CHECK(read(pipes[0], &value, 1) == 1);
		CHECK(eventfd_write(kept, 1) == 0);
		check_one(moved, EPOLLIN, 8);
		CHECK(eventfd_read(kept, &value) == 0);
		CHECK(fcntl(number, F_GETFD) == 0 || errno == EBADF);
		CHECK(eventfd_write(first_kept, 1) == 0);
		check_one(reused, EPOLLIN, 9);
		CHECK(eventfd_read(first_kept, &value) == 0);
		CHECK(eventfd_write(second, 1) == 0);
		check_one(reused, EPOLLIN, 10);
		CHECK(eventfd_read(second, &value) == 0);
		/* The watched number can be changed and removed. */
		event = (struct epoll_event){.events = EPOLLIN, .data.u64 = 10};
		CHECK(epoll_ctl(reused, EPOLL_CTL_MOD, second, &event) == 0, "%m");
		harness_report();
	}
	return 0;
}
