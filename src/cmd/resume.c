/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/command.h"
#include "dump/stopped.h"

int verb_resume(struct command *command)
{
	const struct stopped_options options = {
		.pid = command->options->tree,
		.images_dirfd = command->images_dirfd,
		.timeout_seconds = options_stop_seconds(command->options),
	};
	int r = stopped_tree_resume(&options, &command->failure);

	if (r == 0 && command->options->json)
		report_event("done", NULL);
	return r;
}
