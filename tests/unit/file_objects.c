/* SPDX-License-Identifier: Apache-2.0 */
/* What the BPF program says of open files is what was done to them. */
#include "kernel/file_objects.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/fd.h"
#include "kernel/kernel_types.h"
#include "unit.h"

enum { MANY = 3000, ROOM = MANY + 64 };

static struct file_objects_reader *open_reader(void)
{
	struct kernel_types *types = kernel_types_read();
	struct file_objects_reader *reader = file_objects_open(types);

	kernel_types_free(types);
	return reader;
}

static int make_file(void)
{
	char path[] = "/tmp/criu-unit-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	unlink(path);
	return fd;
}

static const struct file_objects *find(const struct file_objects *objects, size_t count, int number)
{
	const struct file_objects *found = NULL;

	for (size_t i = 0; i < count && !found; i++)
		if (objects[i].number == number)
			found = &objects[i];
	assert_non_null(found);
	return found;
}

static void test_locks_and_owners(void **state)
{
	struct file_objects_reader *reader = open_reader();
	struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct file_objects found[ROOM];

	if (!reader)
		skip(); /* not on this kernel, or not for this user */
	int plain = make_file(), whole = make_file(), process = make_file(), description = make_file();
	int leased = make_file(), owned = make_file(), signalled = make_file();
	assert_int_equal(flock(whole, LOCK_SH), 0);
	assert_int_equal(fcntl(process, F_SETLK, &range), 0);
	assert_int_equal(fcntl(description, F_OFD_SETLK, &range), 0);
	assert_int_equal(fcntl(leased, F_SETLEASE, F_WRLCK), 0);
	assert_int_equal(fcntl(owned, F_SETOWN, getpid()), 0);
	assert_int_equal(fcntl(signalled, F_SETSIG, SIGUSR1), 0);
	int copy = dup(whole);

	size_t count = file_objects_read(reader, getpid(), found, ROOM);
	assert_false(find(found, count, plain)->may_be_locked);
	assert_true(find(found, count, whole)->may_be_locked);
	assert_true(find(found, count, copy)->may_be_locked);
	assert_true(find(found, count, process)->may_be_locked);
	assert_true(find(found, count, description)->may_be_locked);
	assert_true(find(found, count, leased)->may_be_locked);
	assert_true(find(found, count, owned)->may_have_owner);
	assert_true(find(found, count, signalled)->may_have_owner);
	assert_false(find(found, count, owned)->may_be_locked);
	file_objects_close(reader);
	for (int fd = plain; fd <= copy; fd++)
		close(fd);
}

/* More than the kernel gives in one read; with gaps. */
static void test_large_table(void **state)
{
	struct file_objects_reader *reader = open_reader();
	struct rlimit limit;
	struct file_objects *found = calloc(ROOM, sizeof(*found));
	int fds[MANY];

	if (!reader)
		skip();
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_max < MANY + 64)
		skip();
	for (int i = 0; i < MANY; i++) {
		fds[i] = open("/dev/null", O_RDONLY);
		assert_true(fds[i] >= 0);
	}
	for (int i = 0; i < MANY; i += 3)
		close(fds[i]);
	size_t count = file_objects_read(reader, getpid(), found, ROOM);
	for (size_t i = 1; i < count; i++)
		assert_true(found[i].number > found[i - 1].number);
	for (int i = 0; i < MANY; i++)
		if (i % 3) {
			assert_false(find(found, count, fds[i])->may_have_owner);
			close(fds[i]);
		}
	file_objects_close(reader);
	free(found);
}

static void test_without_a_reader(void **state)
{
	struct file_objects found;

	assert_null(file_objects_open(NULL));
	assert_int_equal(file_objects_read(NULL, getpid(), &found, 1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_locks_and_owners),
		cmocka_unit_test(test_large_table),
		cmocka_unit_test(test_without_a_reader),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
