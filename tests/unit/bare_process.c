/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that are nothing but a program: how they end, and that no ordinary wait meets them. */
#include "unit.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject/bare_process.h"

enum { NOT_OPEN = 5000 };

static void plan_nothing(struct program *program, const void *context)
{
}

static void plan_failure(struct program *program, const void *context)
{
	PROGRAM_CALL(program, SYS_close, *(const int *)context);
}

static void test_ends_well(void **state)
{
	pid_t pid = bare_process_start(plan_nothing, NULL);

	assert_true(pid > 0);
	assert_int_equal(bare_process_wait(pid), 0);
	/* It is still there, and no signal and no other wait tells of it. */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
	assert_int_equal(bare_process_wait(pid), 0);
	bare_process_end(pid);
	assert_int_equal(bare_process_wait(pid), -ECHILD);
}

/* The interpreter's way out when a call fails must not wait for a tool that is not there. */
static void test_a_call_fails(void **state)
{
	const int number = NOT_OPEN;
	pid_t pid = bare_process_start(plan_failure, &number);

	assert_true(pid > 0);
	assert_int_equal(bare_process_wait(pid), 1);
	bare_process_end(pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ends_well),
		cmocka_unit_test(test_a_call_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
