/* SPDX-License-Identifier: Apache-2.0 */
/* Config files: one long option a line. */
#pragma once

#include "cmd/options.h"

/*
 * Applies the config files in CRIU's order: /etc/criu/default.conf, $HOME/.criu/default.conf (these two only if
 * they exist and --no-default-config is not given), then --config FILE or $CRIU_CONFIG_FILE.
 *
 * @command_line  what the command line says about config files
 * @options       what the files' options are written to
 * @verb          enum verb_bit of the command that is being run
 * Returns 0 or a failure that names file and line.
 */
int config_read(const struct options *command_line, struct options *options, unsigned verb, struct failure *failure);

/*
 * Applies the lines of @text: `key`, `key value` or `key=value`, with # for comments and double quotes around values
 * with spaces. @text is changed, and strings of *options point into it, so it must live as long. @file names it in
 * failures. Returns 0 or a failure.
 */
int config_parse(char *text, const char *file, struct options *options, unsigned verb, struct failure *failure);
