/* SPDX-License-Identifier: Apache-2.0 */
/* Config files: what a line may look like, in which order files count, and what a wrong one is told. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "directory.h"
#include "base/fd.h"
#include "cmd/config.h"

static char text[4096]; /* the options point into it */
static struct options options;
static struct failure failure;
static char home[DIRECTORY_BYTES];

static int remove_home(void **state)
{
	if (home[0])
		directory_remove(home);
	return 0;
}

static int parse(const char *content)
{
	options_free(&options);
	options_init(&options);
	failure_clear(&failure);
	snprintf(text, sizeof(text), "%s", content);
	return config_parse(text, "file.conf", &options, VERB_DUMP, &failure);
}

static void test_lines(void **state)
{
	assert_int_equal(parse("# a comment\n"
			       "\n"
			       "tcp-established\n"
			       "  images-dir   /a/b   # where\n"
			       "work-dir=/w\n"
			       "log-file = my.log\n"
			       "--ghost-limit 2G\n"
			       "action-script \"/usr/bin/tell me\"\n"
			       "action-script=\"/x#y \\\"z\\\"\"\r\n"
			       "timeout\t7"),
			 0);
	assert_true(options.tcp_established);
	assert_string_equal(options.images_dir, "/a/b");
	assert_string_equal(options.work_dir, "/w");
	assert_string_equal(options.log_file, "my.log");
	assert_true(options.ghost_limit_bytes == UINT64_C(2) << 30);
	assert_int_equal(options.action_scripts.count, 2);
	assert_string_equal(options.action_scripts.items[0], "/usr/bin/tell me");
	assert_string_equal(options.action_scripts.items[1], "/x#y \"z\"");
	assert_int_equal(options.timeout_seconds, 7);
}

static void test_both_forms_of_manage_cgroups(void **state)
{
	assert_int_equal(parse("manage-cgroups ignore\n"), 0);
	assert_null(options.later);
	assert_int_equal(parse("manage-cgroups=ignore\n"), 0);
	assert_null(options.later);
	assert_int_equal(parse("manage-cgroups\n"), 0);
	assert_non_null(options.later);
}

static void test_negation(void **state)
{
	assert_int_equal(parse("shell-job\nno-shell-job\n"), 0);
	assert_false(options.shell_job);
	assert_int_equal(parse("no-images-dir\n"), -EINVAL);
}

static void test_wrong_lines(void **state)
{
	static const struct {
		const char *content, *object;
	} cases[] = {
		{"shell-job\nbogus\n", "file.conf, line 2"},  {"images-dir\n", "file.conf, line 1"},
		{"\n\nshell-job yes\n", "file.conf, line 3"}, {"tree x\n", "file.conf, line 1: --tree"},
		{"log-file \"open\n", "file.conf, line 1"},   {"\"open\n", "file.conf, line 1"},
		{"images-dir /a /b\n", "file.conf, line 1"},  {"= x\n", "file.conf, line 1"},
		{"tree = \n", "file.conf, line 1"},           {"no-tcp-close x\n", "file.conf, line 1"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		if (parse(cases[i].content) != -EINVAL)
			print_error("accepted: %s\n", cases[i].content);
		assert_string_equal(failure.object, cases[i].object);
	}
}

static void write_file(const char *path, const char *content)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	fputs(content, file);
	fclose(file);
}

/* What the command line says wins over --config, which wins over the user's default. */
static void test_order(void **state)
{
	char directory[DIRECTORY_BYTES + 8], user[DIRECTORY_BYTES + 32], given[DIRECTORY_BYTES + 32];

	directory_make(home);
	snprintf(directory, sizeof(directory), "%s/.criu", home);
	snprintf(user, sizeof(user), "%s/default.conf", directory);
	snprintf(given, sizeof(given), "%s/given.conf", home);
	assert_int_equal(mkdir(directory, 0700), 0);
	write_file(user, "images-dir /user\nwork-dir /user\nlog-file user.log\nshell-job\n");
	write_file(given, "images-dir /given\nwork-dir /given\n");
	setenv("HOME", home, 1);
	setenv("CRIU_CONFIG_FILE", given, 1);

	char *words[] = {"criu", "dump", "-D", "/line", NULL};
	assert_int_equal(options_parse(4, words, &options, &failure), 0);
	assert_string_equal(options.images_dir, "/line");
	assert_string_equal(options.work_dir, "/given");
	assert_string_equal(options.log_file, "user.log");
	assert_true(options.shell_job);

	char *without[] = {"criu", "dump", "--no-default-config", NULL};
	options_free(&options);
	assert_int_equal(options_parse(3, without, &options, &failure), 0);
	assert_string_equal(options.images_dir, "/given");
	assert_null(options.log_file);

	char *missing[] = {"criu", "dump", "--config", "/nonexistent/criu.conf", NULL};
	options_free(&options);
	assert_int_equal(options_parse(4, missing, &options, &failure), -ENOENT);
	assert_string_equal(failure.object, "/nonexistent/criu.conf");

	unsetenv("CRIU_CONFIG_FILE");
}

static int reset(void **state)
{
	options_free(&options);
	options_init(&options);
	failure_clear(&failure);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_lines, reset, reset),
		cmocka_unit_test_setup_teardown(test_both_forms_of_manage_cgroups, reset, reset),
		cmocka_unit_test_setup_teardown(test_negation, reset, reset),
		cmocka_unit_test_setup_teardown(test_wrong_lines, reset, reset),
		cmocka_unit_test_setup_teardown(test_order, reset, reset),
	};

	return cmocka_run_group_tests(tests, NULL, remove_home);
}
