/* SPDX-License-Identifier: Apache-2.0 */
/* Action scripts: their environment, their order, and that the first one that fails is the failure. */
#include "unit.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "directory.h"
#include "base/fd.h"
#include "model/action_script.h"

static char directory[DIRECTORY_BYTES];
static char script[DIRECTORY_BYTES + 16], output[DIRECTORY_BYTES + 16];

static void write_script(const char *body)
{
	FILE *file = fopen(script, "w");

	assert_non_null(file);
	fprintf(file, "#!/bin/sh\n%s\n", body);
	fclose(file);
	assert_int_equal(chmod(script, 0700), 0);
}

static int run(const char *action, pid_t root_pid, struct failure *failure)
{
	const char *const paths[] = {script, script};
	const struct action_scripts scripts = {.paths = paths, .count = 2, .images_dir = "/the images"};

	return action_scripts_run(&scripts, action, root_pid, failure);
}

static void assert_output(const char *expected)
{
	_cleanup_free_ char *text = NULL;

	assert_int_equal(read_text_at(-1, output, &text, NULL), 0);
	assert_string_equal(text, expected);
	unlink(output);
}

static void test_environment(void **state)
{
	struct failure failure = {};

	setenv("CRTOOLS_INIT_PID", "old", 1);
	write_script("echo \"$CRTOOLS_SCRIPT_ACTION|$CRTOOLS_IMAGE_DIR|$CRTOOLS_INIT_PID|$MINE\" >>$OUTPUT");
	setenv("OUTPUT", output, 1);
	setenv("MINE", "kept", 1);
	assert_int_equal(run("post-restore", 41, &failure), 0);
	assert_output("post-restore|/the images|41|kept\npost-restore|/the images|41|kept\n");
	assert_int_equal(run("pre-dump", 0, &failure), 0);
	assert_output("pre-dump|/the images||kept\npre-dump|/the images||kept\n");
}

static void test_failures(void **state)
{
	struct failure failure = {};

	write_script("echo once >>$OUTPUT; exit 3");
	assert_int_equal(run("pre-dump", 0, &failure), -ECANCELED);
	assert_output("once\n");
	assert_non_null(strstr(failure.object, "pre-dump"));
	assert_non_null(strstr(failure.object, script));
	assert_string_equal(failure.cause, "exited with status 3");
	failure_clear(&failure);
	write_script("kill -TERM $$");
	assert_int_equal(run("pre-dump", 0, &failure), -ECANCELED);
	assert_string_equal(failure.cause, "ended by signal 15");
	failure_clear(&failure);
	unlink(script);
	assert_int_equal(run("pre-dump", 0, &failure), -ENOENT);
	assert_int_equal(action_scripts_run(NULL, "pre-dump", 0, &failure), 0);
}

/* criu blocks and ignores signals; a script must not inherit that. */
static void test_signals_are_plain(void **state)
{
	struct failure failure = {};
	sigset_t all, before;

	sigfillset(&all);
	write_script("grep ^SigBlk /proc/self/status >$OUTPUT; kill -USR1 $$");
	signal(SIGUSR1, SIG_IGN);
	sigprocmask(SIG_BLOCK, &all, &before);
	int r = run("pre-dump", 0, &failure);
	sigprocmask(SIG_SETMASK, &before, NULL);
	signal(SIGUSR1, SIG_DFL);
	assert_int_equal(r, -ECANCELED);
	assert_string_equal(failure.cause, "ended by signal 10");
	assert_output("SigBlk:\t0000000000000000\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_environment),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_signals_are_plain),
	};

	directory_make(directory);
	snprintf(script, sizeof(script), "%s/script", directory);
	snprintf(output, sizeof(output), "%s/output", directory);
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	directory_remove(directory);
	return failed;
}
