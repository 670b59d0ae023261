/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/migrate.h"

#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "cmd/command.h"
#include "cmd/wire_options.h"
#include "dump/stopped.h"
#include "kernel/proc.h"
#include "migrate/address.h"
#include "migrate/journal.h"
#include "migrate/preflight.h"

enum { DEFAULT_TIMEOUT_SECONDS = 300, DEFAULT_LINK_SECONDS = 30 };

/* ---- while it goes on ---- */

static void show_progress(void *context, const struct migrate_progress_report *report)
{
	struct command *command = context;
	char stage[32];

	if (command->options->json) {
		report_event("migrate", "{s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I}", "state", report->state, "round",
			     (int)report->round, "done_bytes", (json_int_t)report->done_bytes, "total_bytes",
			     (json_int_t)report->total_bytes, "dirty_bytes", (json_int_t)report->dirty_bytes,
			     "dirty_bytes_per_second", (json_int_t)report->dirty_bytes_per_second, "bytes_per_second",
			     (json_int_t)report->bytes_per_second, "downtime_estimate_us",
			     (json_int_t)report->downtime_estimate_us);
		return;
	}
	snprintf(stage, sizeof(stage), "%s %u", report->state, report->round);
	const struct progress progress = {report->round ? stage : report->state, report->done_bytes,
					  report->total_bytes};
	progress_show(&command->progress, &progress);
}

static void show_check(void *context, const struct preflight_check *check)
{
	static const char *const verdicts[PREFLIGHT_VERDICT_COUNT] = {"passed", "skipped", "failed"};
	struct command *command = context;
	char line[1024];

	failure_line(&check->failure, line, sizeof(line));
	progress_end(&command->progress);
	if (command->options->json)
		report_event("check", "{s:s, s:s, s:o}", "name", check->name, "verdict", verdicts[check->verdict],
			     "text", report_text(line));
	else if (check->verdict == PREFLIGHT_FAILED)
		fprintf(stderr, "criu: %s: %s\n", check->name, line);
	else if (check->verdict == PREFLIGHT_SKIPPED || command->options->dry_run)
		printf("%-10s %-8s %s\n", check->name, verdicts[check->verdict], line);
}

static void show_summary(const struct command *command, const struct migrate_summary *summary)
{
	char memory[32], last[32], wire[32], stopped[48] = "";

	if (command->options->json) {
		report_event("done", "{s:I, s:I, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "total_us",
			     (json_int_t)summary->total_us, "downtime_us", (json_int_t)summary->downtime_us, "rounds",
			     (int)summary->rounds, "memory_bytes", (json_int_t)summary->memory_bytes, "last_bytes",
			     (json_int_t)summary->last_bytes, "zero_bytes", (json_int_t)summary->zero_bytes,
			     "wire_bytes", (json_int_t)summary->wire_bytes, "image_bytes",
			     (json_int_t)summary->image_bytes, "lz4_bytes", (json_int_t)summary->lz4_bytes,
			     "zstd_bytes", (json_int_t)summary->zstd_bytes, "follow_us", (json_int_t)summary->follow_us,
			     "follow_bytes", (json_int_t)summary->follow_bytes, "faults", (json_int_t)summary->faults);
		return;
	}
	/* An earlier criu has stopped it. */
	if (summary->downtime_us)
		snprintf(stopped, sizeof(stopped), ", stopped for %.1f ms", (double)summary->downtime_us / 1e3);
	if (!summary->downtime_us && !summary->follow_us) {
		printf("moved: the command that was given before has copied it, and this one has ended it here\n");
		return;
	}
	if (summary->follow_us) {
		printf("moved in %.2f s%s; %s of memory followed in %.2f s, %" PRIu64 " faults waited for it\n",
		       (double)summary->total_us / 1e6, stopped,
		       bytes_text(summary->follow_bytes, memory, sizeof(memory)), (double)summary->follow_us / 1e6,
		       summary->faults);
		return;
	}
	printf("moved in %.2f s%s: %s of memory in %u round%s, %s in the last, %s on the wire\n",
	       (double)summary->total_us / 1e6, stopped, bytes_text(summary->memory_bytes, memory, sizeof(memory)),
	       summary->rounds, summary->rounds == 1 ? "" : "s", bytes_text(summary->last_bytes, last, sizeof(last)),
	       bytes_text(summary->wire_bytes + summary->image_bytes, wire, sizeof(wire)));
}

/* ---- after a migration that was cut off ---- */

struct listing {
	const struct command *command;
	size_t count;
};

/* A tree that is held stopped ends with the criu that holds it. */
static bool was_let_go(const struct journal *journal)
{
	_cleanup_fd_ int proc_dirfd = proc_open(journal->pid);
	struct proc_stat stat;

	return journal->role == JOURNAL_DESTINATION && proc_dirfd >= 0 && !proc_read_stat(proc_dirfd, "stat", &stat) &&
	       !strchr("TtZX", stat.state);
}

static const char *advice(const struct journal *journal)
{
	if (!kill(journal->criu, 0))
		return journal->state == JOURNAL_DECIDING ? "waits for the other side" : "goes on";
	switch (journal->state) {
	case JOURNAL_COPYING:
		return "was cut off; the tree runs on the source";
	case JOURNAL_DECIDING:
		if (was_let_go(journal))
			return "was cut off when the tree ran here: if it is still at the source, stopped, --abort "
			       "there";
		return "was cut off; the tree is here, stopped: --resume if it does not run on the other side, --abort "
		       "if it does";
	default:
		return journal->role == JOURNAL_SOURCE
			       ? "was cut off while its memory followed; repeat the command (if the other machine is "
				 "gone for good: --resume)"
			       : "was cut off while its memory followed; repeat the command at the source";
	}
}

static void list_journal(void *context, const struct journal *journal)
{
	struct listing *listing = context;
	const char *role = journal->role == JOURNAL_SOURCE ? "to" : "from";

	listing->count++;
	if (listing->command->options->json)
		report_event("migration", "{s:i, s:s, s:o, s:s, s:b, s:s}", "tree", (int)journal->pid, "role",
			     journal->role == JOURNAL_SOURCE ? "source" : "destination", "peer",
			     report_text(journal->peer), "state", journal_state_name(journal->state), "alive",
			     !kill(journal->criu, 0), "advice", advice(journal));
	else
		printf("process %d %s %s: %s, %s\n", journal->pid, role, journal->peer,
		       journal_state_name(journal->state), advice(journal));
}

static int show_status(struct command *command)
{
	struct listing listing = {.command = command};
	int r = journal_list(&command->failure, list_journal, &listing);

	if (!r && !listing.count && !command->options->json)
		printf("no migration of this machine is open\n");
	return r;
}

static int find_open_journal(struct command *command, struct journal *ret_journal)
{
	char object[32];
	int r = journal_find(&command->failure, JOURNAL_SOURCE, command->options->tree, ret_journal);

	if (r == -ENOENT && !failure_is_set(&command->failure))
		r = journal_find(&command->failure, JOURNAL_DESTINATION, command->options->tree, ret_journal);
	snprintf(object, sizeof(object), "process %d", command->options->tree);
	if (r == -ENOENT && !failure_is_set(&command->failure))
		return fail(&command->failure, ENOENT, "migrate-no-journal", object, "see criu migrate --status",
			    "no migration of this tree is open on this machine");
	return r;
}

/* What a person knows and no machine: which side is to live. */
static int decide(struct command *command)
{
	const struct options *options = command->options;
	const struct stopped_options stopped = {
		.pid = options->tree, .images_dirfd = -1, .timeout_seconds = options_stop_seconds(options)};
	struct journal journal;
	int r = find_open_journal(command, &journal);

	if (r < 0)
		return r;
	if (journal.role == JOURNAL_DESTINATION && journal.state == JOURNAL_FETCHING)
		return fail(&command->failure, EINVAL, "migrate-decide", NULL,
			    "repeat the command at the source; to give it up, end it as any other program",
			    "there is nothing to decide: the tree runs here, and waits for its memory");
	if (journal.role == JOURNAL_DESTINATION) {
		/* The criu that holds the tree waits for this. */
		if (kill(journal.criu, options->resume_tree ? SIGUSR1 : SIGTERM) < 0)
			return fail_errno(&command->failure, errno, "migrate-decide", NULL, NULL,
					  "criu %d, which holds the tree, cannot be told", journal.criu);
		return 0;
	}
	if (!kill(journal.criu, 0))
		return fail(&command->failure, EBUSY, "migrate-busy", NULL, "end it first",
			    "criu %d still works on this migration", journal.criu);
	if (journal.state == JOURNAL_COPYING)
		return fail(&command->failure, EINVAL, "migrate-decide", NULL, NULL,
			    "there is nothing to decide: the tree runs here");
	/* Before its connections say a word. */
	if (options->resume_tree)
		r = journal_take_addresses_back(&journal, &command->failure);
	if (!r)
		r = options->resume_tree ? stopped_tree_resume(&stopped, &command->failure)
					 : stopped_tree_kill(&stopped, &command->failure);
	if (!r)
		journal_remove(&journal);
	return r;
}

/* ---- the command ---- */

static int check_usage(struct command *command)
{
	const struct options *options = command->options;
	struct failure *failure = &command->failure;
	int decisions = options->status + options->resume_tree + options->abort_tree;

	if (decisions > 1)
		return fail(failure, EINVAL, "usage", NULL, NULL, "--status, --resume and --abort exclude each other");
	if (!options->status && !options->tree)
		return fail(failure, EINVAL, "usage", NULL, NULL, "migrate needs --tree PID");
	if (!decisions && options->positional_count != 1)
		return fail(failure, EINVAL, "usage", NULL, "criu migrate --tree PID ssh://user@host",
			    "migrate needs one destination: ssh://, tls:// or tcp://");
	return 0;
}

static int migrate(struct command *command)
{
	const struct options *options = command->options;
	_cleanup_free_ struct moving_address *addresses = xcalloc(options->addresses.count + 1, sizeof(*addresses));
	struct migrate_summary summary = {};
	struct migrate_options migrate = {
		.pid = options->tree,
		.downtime_ms = options->downtime_ms,
		.timeout_seconds = options->timeout_seconds == TIMEOUT_DEFAULT ? DEFAULT_TIMEOUT_SECONDS
									       : options->timeout_seconds,
		.at_timeout = (enum migrate_at_timeout)options->at_timeout,
		.link_timeout_seconds = options->link_timeout_seconds ?: DEFAULT_LINK_SECONDS,
		.throttle = options->throttle,
		.post_copy = options->post_copy,
		.addresses = addresses,
		.address_count = options->addresses.count,
		.skip_checks = (const char *const *)options->skip_checks.items,
		.skip_check_count = options->skip_checks.count,
		.send_files = options->send_files,
		.shell_job = options->shell_job,
		.ghost_limit_bytes = options->ghost_limit_bytes,
		.freeze_timeout_seconds = 10,
		.die_at = options->die_at,
		.progress = show_progress,
		.check = show_check,
		.context = command,
	};
	struct proc_stat stat = {};
	_cleanup_fd_ int proc_fd = proc_open(options->tree);
	int r = endpoint_parse(options->positional[0], &migrate.endpoint, &command->failure);

	for (size_t i = 0; i < options->addresses.count && !r; i++)
		r = address_parse(&command->failure, options->addresses.items[i], &addresses[i]);
	if (r < 0)
		return r;
	wire_options_fill(options, &migrate.wire);
	if (proc_fd >= 0)
		proc_read_stat(proc_fd, "stat", &stat);
	migrate.wire.identity_comm = stat.comm;
	migrate.wire.pid = options->tree;
	migrate.wire.dry_run = options->dry_run;
	r = migrate_run(&migrate, &command->failure, &summary);
	progress_end(&command->progress);
	if (!r && !options->dry_run)
		show_summary(command, &summary);
	else if (!r && !options->json)
		printf("Nothing is in the way of moving %d; nothing has been moved.\n", options->tree);
	return r;
}

int verb_migrate(struct command *command)
{
	const struct options *options = command->options;

	if (options->die_at && !strcmp(options->die_at, "list")) {
		for (const char *const *state = migrate_states; *state; state++)
			puts(*state);
		return 0;
	}
	int r = check_usage(command);
	if (r < 0)
		return r;
	if (options->status)
		return show_status(command);
	if (options->resume_tree || options->abort_tree)
		return decide(command);
	return migrate(command);
}
