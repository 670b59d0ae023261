/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks: flock(), fcntl() of a process and of an open file description, leases. What others see of them is asked
 * from a child, because a process's own fcntl() locks are not in its way.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static pid_t parent;

static int make(const char *path, int flags)
{
	return MUST(open(path, flags | O_CREAT, 0600));
}

static struct flock range(short type, off_t start, off_t length)
{
	return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

/* The lock of another that is in the way of a write lock on the whole file from @start. */
static struct flock in_the_way(const char *path, int command, off_t start)
{
	struct flock lock = range(F_WRLCK, start, 0);
	int fd = open(path, O_RDWR);

	CHECK(fd >= 0 && !fcntl(fd, command, &lock));
	close(fd);
	return lock;
}

static bool is_flocked(const char *path, int operation)
{
	int fd = open(path, O_RDWR);
	bool locked = flock(fd, operation | LOCK_NB) < 0 && errno == EWOULDBLOCK;

	close(fd);
	return locked;
}

static void look(void *argument)
{
	struct flock lock = in_the_way("process", F_GETLK, 0);
	CHECK(lock.l_type == F_RDLCK && lock.l_start == 2 && lock.l_len == 5 && lock.l_pid == parent,
	      "type %d, %ld+%ld of %d", lock.l_type, lock.l_start, lock.l_len, lock.l_pid);
	lock = in_the_way("process", F_GETLK, 7);
	CHECK(lock.l_type == F_WRLCK && lock.l_start == 100 && lock.l_len == 0 && lock.l_pid == parent,
	      "type %d, %ld+%ld of %d", lock.l_type, lock.l_start, lock.l_len, lock.l_pid);
	lock = in_the_way("description", F_OFD_GETLK, 0);
	CHECK(lock.l_type == F_WRLCK && lock.l_start == 10 && lock.l_len == 10 && lock.l_pid == -1);
	CHECK(in_the_way("free", F_GETLK, 0).l_type == F_UNLCK);
}

int main(void)
{
	struct flock read_range = range(F_RDLCK, 2, 5), to_end = range(F_WRLCK, 100, 0),
		     middle = range(F_WRLCK, 10, 10);

	parent = getpid();
	int process = make("process", O_RDWR);
	MUST(fcntl(process, F_SETLK, &read_range));
	MUST(fcntl(process, F_SETLK, &to_end));
	int description = make("description", O_RDWR);
	MUST(fcntl(description, F_OFD_SETLK, &middle));
	int exclusive = make("exclusive", O_RDONLY), duplicate = MUST(dup(exclusive));
	MUST(flock(exclusive, LOCK_EX));
	int shared = make("shared", O_RDWR);
	MUST(flock(shared, LOCK_SH));
	make("free", O_RDWR);
	close(make("leased", O_RDWR));
	int leased = MUST(open("leased", O_RDONLY));
	MUST(fcntl(leased, F_SETLEASE, F_RDLCK));
	harness_start_child(look, NULL);

	harness_ready();
	while (harness_wait_check()) {
		harness_check_children();
		CHECK(is_flocked("exclusive", LOCK_SH));
		CHECK(!is_flocked("shared", LOCK_SH) && is_flocked("shared", LOCK_EX));
		/* The lock belongs to the description: a duplicate may change it. */
		CHECK(!flock(duplicate, LOCK_UN | LOCK_NB) && !is_flocked("exclusive", LOCK_EX));
		CHECK(!flock(exclusive, LOCK_EX | LOCK_NB) && is_flocked("exclusive", LOCK_SH));
		CHECK(fcntl(leased, F_GETLEASE) == F_RDLCK);
		harness_report();
	}
	return 0;
}
