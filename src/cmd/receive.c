/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receive.h"

#include <stdio.h>
#include <string.h>

#include "cmd/command.h"
#include "cmd/wire_options.h"
#include "migrate/journal.h"
#include "migrate/listener.h"

/* Only memory is lost by waiting, and a migration by not waiting. */
enum { DEFAULT_SILENCE_SECONDS = 3600 };

struct receiving {
	struct command *command;
	struct wire_options wire;
};

/* With --stdio the standard output is the connection. */
static FILE *output(const struct command *command)
{
	return command->options->stdio ? stderr : stdout;
}

static void show_began(void *context, int pid, const char *comm, const char *host)
{
	const struct command *command = context;

	if (command->options->json)
		report_event("receive", "{s:i, s:o, s:o}", "tree", pid, "comm", report_text(comm), "from",
			     report_text(host));
	else if (!command->options->stdio)
		fprintf(output(command), "process %d (%s) comes from %s\n", pid, comm, host);
	fflush(output(command));
}

static void show_running(void *context, int pid, uint64_t restore_ns)
{
	const struct command *command = context;

	if (command->options->json)
		report_event("running", "{s:i, s:I}", "tree", pid, "restore_us", (int64_t)(restore_ns / 1000));
	else if (!command->options->stdio)
		fprintf(output(command), "process %d runs here, built in %.1f ms\n", pid, (double)restore_ns / 1e6);
	fflush(output(command));
}

static void show_note(void *context, const char *text)
{
	const struct command *command = context;

	if (command->options->json)
		report_event("note", "{s:o}", "text", report_text(text));
	else
		fprintf(stderr, "criu: %s\n", text);
}

/* In a process of its own: the failure of one session is told, and the others go on. */
static int serve(void *context, struct session_entry *entry)
{
	struct receiving *receiving = context;
	struct command *command = receiving->command;
	const struct receive_report report = {
		.began = show_began, .running = show_running, .note = show_note, .context = command};
	const struct receive_options options = {
		.wire = &receiving->wire,
		.report = &report,
		.silence_seconds = command->options->link_timeout_seconds ?: DEFAULT_SILENCE_SECONDS,
		.die_at = command->options->die_at,
	};
	struct failure failure = {};
	int r = receive_session(&options, entry, &failure);

	if (r < 0)
		report_failure(&failure, command->options->json);
	return r < 0;
}

static void show_listening(void *context, const char *address)
{
	const struct receiving *receiving = context;

	if (receiving->command->options->json)
		report_event("listening", "{s:s}", "address", address);
	else
		printf("waiting for trees on %s\n", address);
	fflush(stdout);
}

int verb_receive(struct command *command)
{
	const struct options *options = command->options;
	struct receiving receiving = {.command = command};
	struct listener_options listener = {
		.listen = options->listen,
		.once = options->once,
		.stdio = options->stdio,
		.secure = options->tls || options->psk_file,
		.wire = &receiving.wire,
		.serve = serve,
		.listening = show_listening,
		.context = &receiving,
		.stop_fd = -1,
	};

	if (options->die_at && !strcmp(options->die_at, "list")) {
		for (const char *const *state = receive_states; *state; state++)
			puts(*state);
		return 0;
	}
	int r = options->join ? listener_join(options->join, &command->failure) : 0;
	if (options->join && r != -ECONNREFUSED)
		return r;
	failure_clear(&command->failure);
	/* A process of that session is not here any more: its source has come to take it up again. */
	listener.stdio = options->stdio || options->join;
	listener.returns = options->join;
	journal_clean();
	wire_options_fill(options, &receiving.wire);
	return listener_run(&listener, &command->failure, &command->exit_status);
}
