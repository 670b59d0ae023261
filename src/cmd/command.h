/* SPDX-License-Identifier: Apache-2.0 */
/* One run of a verb: its options, the directories it works in and how it talks to the user. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "cmd/options.h"
#include "cmd/verbs.h"
#include "model/action_script.h"

/* The bar on the terminal. */
struct progress_display {
	bool json;         /* events instead of a bar */
	bool terminal;     /* standard error is one */
	uint64_t start_ns; /* of the stage */
	uint64_t drawn_ns; /* last time; 0 = nothing is on the screen */
	char stage[32];
};

struct command {
	const struct options *options;
	const struct verb *verb;
	struct failure failure;
	int images_dirfd; /* -1 = the verb has none */
	int work_dirfd;   /* -1 = the verb has none */
	int exit_status;
	struct action_scripts scripts;
	struct progress_display progress;
};

/* ---- setup.c ---- */

/*
 * Opens and checks the directories and the log. Nothing else is touched before this has succeeded.
 * Returns 0 or a failure in command->failure.
 */
int command_setup(struct command *command);
void command_finish(struct command *command);

/* ---- report.c ---- */

/*
 * Prints the failure of a command: one red line on standard error and an error line in the log, or with --json an
 * event on standard output.
 */
void report_failure(const struct failure *failure, bool json);
/* Prints one event: {"event": @name, …}; @format and what follows are those of json_pack(), or NULL. */
void report_event(const char *name, const char *format, ...);
/* A string from outside as JSON: bytes that are no UTF-8 become '?'. The caller owns the reference. */
struct json_t *report_text(const char *text);
/* "1.5 GiB" into @buffer. Returns @buffer. */
char *bytes_text(uint64_t bytes, char *buffer, size_t size);

/* ---- progress.c ---- */

struct progress;
/* For dump_options.progress and restore_options.progress: @context is a struct progress_display. */
void progress_show(void *context, const struct progress *progress);
/* Takes the bar off the screen. */
void progress_end(struct progress_display *display);
