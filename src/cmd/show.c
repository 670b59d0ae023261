/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/show.h"

#include "cmd/command.h"

int verb_show(struct command *command)
{
	json_t *document = NULL;
	int r = show_read(command->images_dirfd, &command->failure, &document);

	if (r < 0)
		return r;
	if (command->options->json)
		show_print_json(document);
	else
		show_print(document);
	json_decref(document);
	return 0;
}
