/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of criu: `criu dump`, `criu restore` … One file of src/cmd each; verbs.c lists them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "cmd/options.h"

struct command;

/* What a verb does with the images directory. */
enum verb_images {
	VERB_IMAGES_NONE,
	VERB_IMAGES_READ,     /* must exist; --images-dir or the current directory */
	VERB_IMAGES_WRITE,    /* must exist and be writable */
	VERB_IMAGES_IF_GIVEN, /* read, only if --images-dir is given */
};

struct verb {
	const char *name;
	unsigned bit; /* enum verb_bit, which of the options apply; 0 = none does */
	enum verb_images images;
	bool needs_tree; /* --tree must be given */
	/* Returns 0 or a failure in command->failure. command->exit_status is what criu exits with after 0. */
	int (*run)(struct command *command);
	const char *later; /* what it comes with; NULL = it works */
	const char *words; /* what follows the verb besides options, for help */
	const char *summary;
};

extern const struct verb verbs[];
extern const size_t verb_count;

/* The verb with this name, or NULL. */
const struct verb *verb_find(const char *name);

int verb_dump(struct command *command);
int verb_pre_dump(struct command *command);
int verb_dedup(struct command *command);
int verb_restore(struct command *command);
int verb_check(struct command *command);
int verb_kill(struct command *command);
int verb_resume(struct command *command);
int verb_show(struct command *command);
int verb_explain(struct command *command);
int verb_migrate(struct command *command);
int verb_receive(struct command *command);
int verb_page_server(struct command *command);
int verb_lazy_pages(struct command *command);
int verb_version(struct command *command);
int verb_help(struct command *command);
