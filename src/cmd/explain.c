/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cmd/command.h"
#include "cmd/dump_options.h"
#include "dump/dump.h"

static void print_blocker(void *context, const struct failure *blocker)
{
	const struct command *command = context;
	char line[1024];

	if (command->options->json) {
		report_event("blocker", "{s:i, s:o, s:o, s:o, s:o}", "error", blocker->error, "code",
			     report_text(blocker->code), "object", report_text(blocker->object), "cause",
			     report_text(blocker->cause), "hint", report_text(blocker->hint));
		return;
	}
	printf("%s\n", failure_line(blocker, line, sizeof(line)));
}

static void print_result(const struct command *command, size_t blockers)
{
	if (command->options->json)
		report_event("done", "{s:i}", "blockers", (int)blockers);
	else if (blockers)
		printf("%zu object%s in the way of a dump of %d.\n", blockers, blockers == 1 ? "" : "s",
		       command->options->tree);
	else
		printf("Nothing is in the way of a dump of %d.\n", command->options->tree);
}

int verb_explain(struct command *command)
{
	DumpStatsEntry stats = DUMP_STATS_ENTRY__INIT;
	struct dump_options options;
	size_t blockers = 0;

	dump_options_fill(command, &options);
	options.explain = true;
	options.blocker = print_blocker;
	options.progress = NULL;
	options.scripts = NULL;
	options.context = command;
	int r = dump_run(&options, &command->failure, &stats, &blockers);
	if (r < 0)
		return r;
	print_result(command, blockers);
	command->exit_status = blockers ? 1 : 0;
	return 0;
}
