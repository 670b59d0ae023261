/* SPDX-License-Identifier: Apache-2.0 */
/* What `dump` and `explain` tell the engine. */
#pragma once

#include "cmd/command.h"

/* Takes the options that a dump and its dry run share. */
void dump_options_fill(struct command *command, struct dump_options *ret_options);
