/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/command.h"

int verb_show(struct command *command)
{
	return fail(&command->failure, EOPNOTSUPP, "verb-later", "criu show", NULL, "is being made");
}
