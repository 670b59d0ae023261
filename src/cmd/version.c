/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cmd/command.h"

/* The CRIU release whose command line, protocol and images this one speaks: engines compare it with what they need. */
#define COMPATIBLE_VERSION "4.2"

int verb_version(struct command *command)
{
	if (command->options->json)
		report_event("version", "{s:s, s:s}", "compatible", COMPATIBLE_VERSION, "version", CRIU_VERSION);
	else
		printf("Version: %s\ncriu %s (independent implementation)\n", COMPATIBLE_VERSION, CRIU_VERSION);
	return 0;
}
