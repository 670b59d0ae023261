/* SPDX-License-Identifier: Apache-2.0 */
/* Who gets the signals of open files, and which ones; and locks among many files. Others have neither. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Two hosts on one kernel share locks, so there are none in the program that moves between such. */
#ifndef FILES
#define FILES 40
#define LOCKS false
#endif

enum { NOTHING, OWNED_BY_PROCESS, OWNED_BY_THREAD, OWNED_BY_GROUP, SIGNAL_ONLY, LOCKED, LEASED, SORTS };

static int sort_of(int index)
{
	return index % (LOCKS ? SORTS : LOCKED);
}

static int make_file(int index)
{
	struct f_owner_ex thread = {F_OWNER_TID, getpid()};
	int pair[2];
	char path[32];

	snprintf(path, sizeof(path), "file-%d", index);
	if (sort_of(index) == LEASED)
		close(MUST(open(path, O_RDONLY | O_CREAT, 0600)));
	int mode = sort_of(index) == LEASED ? O_RDONLY : O_RDWR | O_CREAT;
	int fd = MUST(open(path, mode, 0600));
	if (index % 2 && sort_of(index) < LOCKED) {
		MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		MUST(dup2(pair[0], fd));
		close(pair[0]);
		MUST(fcntl(pair[1], F_DUPFD, 0)); /* stays open */
		close(pair[1]);
	}
	switch (sort_of(index)) {
	case OWNED_BY_PROCESS:
		MUST(fcntl(fd, F_SETOWN, getpid()));
		MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 3));
		break;
	case OWNED_BY_THREAD:
		MUST(fcntl(fd, F_SETOWN_EX, &thread));
		break;
	case OWNED_BY_GROUP:
		MUST(fcntl(fd, F_SETOWN, -getpgrp()));
		break;
	case SIGNAL_ONLY:
		MUST(fcntl(fd, F_SETSIG, SIGUSR2));
		break;
	case LOCKED:
		MUST(flock(fd, LOCK_EX));
		break;
	case LEASED:
		MUST(fcntl(fd, F_SETLEASE, F_RDLCK));
		break;
	}
	return fd;
}

static bool is_locked(int index)
{
	char path[32];

	snprintf(path, sizeof(path), "file-%d", index);
	int fd = MUST(open(path, O_RDONLY | O_NONBLOCK));
	bool locked = flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
	close(fd);
	return locked;
}

static void check(int index, int fd)
{
	int sort = sort_of(index);
	struct f_owner_ex owner = {};
	int expected_type = sort == OWNED_BY_PROCESS  ? F_OWNER_PID
			    : sort == OWNED_BY_THREAD ? F_OWNER_TID
			    : sort == OWNED_BY_GROUP  ? F_OWNER_PGRP
						      : -1;
	int expected_pid = sort == OWNED_BY_GROUP ? getpgrp() : expected_type < 0 ? 0 : getpid();
	int expected_signal = sort == OWNED_BY_PROCESS ? SIGRTMIN + 3 : sort == SIGNAL_ONLY ? SIGUSR2 : 0;

	CHECK(fcntl(fd, F_GETSIG) == expected_signal, "file %d: signal %d", index, fcntl(fd, F_GETSIG));
	CHECK(!fcntl(fd, F_GETOWN_EX, &owner) && (sort == LEASED || owner.pid == expected_pid) &&
		      (expected_type < 0 || owner.type == expected_type),
	      "file %d: owner %d of type %d", index, owner.pid, owner.type);
	if (index % 2 == 0 || sort >= LOCKED)
		CHECK(is_locked(index) == (sort == LOCKED), "file %d", index);
	CHECK(sort != LEASED || fcntl(fd, F_GETLEASE) == F_RDLCK, "file %d: lease %d", index, fcntl(fd, F_GETLEASE));
}

int main(void)
{
	struct rlimit limit;
	int fds[FILES];

	MUST(getrlimit(RLIMIT_NOFILE, &limit));
	if (limit.rlim_max < 2 * FILES)
		harness_skip("the limit of descriptors is %lu", (unsigned long)limit.rlim_max);
	limit.rlim_cur = limit.rlim_max;
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	for (int i = 0; i < FILES; i++)
		fds[i] = make_file(i);
	harness_ready();
	while (harness_wait_check()) {
		for (int i = 0; i < FILES; i++)
			check(i, fds[i]);
		harness_report();
	}
	return 0;
}
