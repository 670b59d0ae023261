/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event counters: value, semaphore mode, flags, one counter in two tasks.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void check_in_child(void *argument)
{
	uint64_t value = 0;

	CHECK(read(*(int *)argument, &value, sizeof(value)) == sizeof(value) && value == 5, "%lu", value);
}

int main(void)
{
	int counter = MUST(eventfd(42, EFD_NONBLOCK));
	int semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
	int large = MUST(eventfd(0, 0));
	int empty = MUST(eventfd(0, EFD_NONBLOCK));
	int shared = MUST(eventfd(0, 0));
	const uint64_t most = UINT64_MAX - 1;
	uint64_t value;

	MUST(write(large, &most, sizeof(most)));
	harness_start_child(check_in_child, &shared);
	harness_ready();
	while (harness_wait_check()) {
		CHECK(read(counter, &value, sizeof(value)) == sizeof(value) && value == 42, "%lu", value);
		CHECK(read(counter, &value, sizeof(value)) == -1 && errno == EAGAIN);
		CHECK(eventfd_write(counter, 42) == 0);
		for (int i = 0; i < 3; i++)
			CHECK(read(semaphore, &value, sizeof(value)) == sizeof(value) && value == 1, "%lu", value);
		CHECK(read(semaphore, &value, sizeof(value)) == -1 && errno == EAGAIN);
		CHECK(eventfd_write(semaphore, 3) == 0);
		CHECK(fcntl(semaphore, F_GETFD) == FD_CLOEXEC);
		CHECK(!(fcntl(large, F_GETFL) & O_NONBLOCK));
		CHECK(read(large, &value, sizeof(value)) == sizeof(value) && value == most, "%lu", value);
		CHECK(eventfd_write(large, most) == 0);
		CHECK(read(empty, &value, sizeof(value)) == -1 && errno == EAGAIN);
		CHECK(eventfd_write(shared, 5) == 0);
		harness_check_children();
		harness_report();
	}
	return 0;
}
