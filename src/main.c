/* SPDX-License-Identifier: Apache-2.0 */
/*
 * criu: options, then the verb, then how it ended. Exit status 0 or 1; a restore in the foreground ends with the
 * status of the restored root.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/command.h"
#include "cmd/option_check.h"
#include "cmd/options.h"
#include "cmd/verbs.h"

static int find_verb(struct command *command, const struct options *options)
{
	struct failure *failure = &command->failure;

	if (!options->verb && !options->help && !options->version)
		return fail(failure, EINVAL, "usage", NULL, "see `criu help`", "no command is given");
	command->verb = options->verb ? verb_find(options->verb) : verb_find("help");
	if (options->version)
		command->verb = verb_find("version");
	else if (options->help && command->verb)
		command->verb = verb_find("help");
	if (!command->verb)
		return fail(failure, EINVAL, "usage", NULL, "see `criu help`", "unknown command \"%s\"", options->verb);
	return 0;
}

static int check_usage(struct command *command, const struct options *options)
{
	const struct verb *verb = command->verb;
	struct failure *failure = &command->failure;

	if (verb->later) {
		char object[64];

		snprintf(object, sizeof(object), "criu %s", verb->name);
		return fail(failure, EOPNOTSUPP, "verb-later", object, "see README, what is supported",
			    "is not part of this release, it comes with %s", verb->later);
	}
	int r = options_refuse_later(options, failure);
	if (!r)
		r = options_check(options, verb, failure);
	if (r < 0)
		return r;
	if (verb->needs_tree && !options->tree)
		return fail(failure, EINVAL, "usage", NULL, NULL, "%s needs --tree PID", verb->name);
	if (options->positional_count && !*verb->words)
		return fail(failure, EINVAL, "usage", NULL, "see `criu help`", "unexpected word \"%s\"",
			    options->positional[0]);
	return 0;
}

static int run(struct command *command, const struct options *options)
{
	int r = find_verb(command, options);

	if (r < 0 || (r = check_usage(command, options)) < 0 || (r = command_setup(command)) < 0)
		return r;
	return command->verb->run(command);
}

int main(int argc, char **argv)
{
	struct command command = {.images_dirfd = -1, .work_dirfd = -1};
	struct options options;

	options_init(&options);
	int r = options_parse(argc, argv, &options, &command.failure);
	command.options = &options;
	if (r == 0)
		r = run(&command, &options);
	progress_end(&command.progress);
	if (r < 0)
		report_failure(&command.failure, options.json);
	command_finish(&command);
	options_free(&options);
	return r < 0 ? 1 : command.exit_status;
}
