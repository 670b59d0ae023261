/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cmd/command.h"
#include "cmd/dump_options.h"
#include "cmd/tracking.h"
#include "dump/dump.h"

void dump_options_fill(struct command *command, struct dump_options *ret_options)
{
	const struct options *options = command->options;

	*ret_options = (struct dump_options){
		.pid = options->tree,
		.images_dirfd = command->images_dirfd,
		.work_dirfd = command->work_dirfd,
		.shell_job = options->shell_job,
		.tcp_established = options->tcp_established,
		.tcp_close = options->tcp_close,
		.tcp_skip_in_flight = options->skip_in_flight,
		.link_remap = options->link_remap,
		.format_plain = options->format_plain,
		.ghost_limit_bytes = options->ghost_limit_bytes,
		.timeout_seconds = options_stop_seconds(options),
		.network_lock = options->network_lock,
		.scripts = command->scripts.count ? &command->scripts : NULL,
		.die_at = options->die_at,
		.progress = progress_show,
		.context = &command->progress,
	};
}

static void print_stats(const DumpStatsEntry *stats)
{
	printf("Displaying dump stats:\n");
	printf("Freezing time: %u us\n", stats->freezing_time);
	printf("Frozen time: %u us\n", stats->frozen_time);
	printf("Memory dump time: %u us\n", stats->memdump_time);
	printf("Memory write time: %u us\n", stats->memwrite_time);
	printf("Memory pages scanned: %llu (0x%llx)\n", (unsigned long long)stats->pages_scanned,
	       (unsigned long long)stats->pages_scanned);
	printf("Memory pages skipped from parent: %llu (0x%llx)\n", (unsigned long long)stats->pages_skipped_parent,
	       (unsigned long long)stats->pages_skipped_parent);
	printf("Memory pages written: %llu (0x%llx)\n", (unsigned long long)stats->pages_written,
	       (unsigned long long)stats->pages_written);
}

static void stats_event(const DumpStatsEntry *stats)
{
	report_event("stats", "{s:I, s:I, s:I, s:I, s:I, s:I}", "freezing_time_us", (int64_t)stats->freezing_time,
		     "frozen_time_us", (int64_t)stats->frozen_time, "memdump_time_us", (int64_t)stats->memdump_time,
		     "memwrite_time_us", (int64_t)stats->memwrite_time, "pages_scanned", (int64_t)stats->pages_scanned,
		     "pages_written", (int64_t)stats->pages_written);
}

static void report_done(const struct command *command, const DumpStatsEntry *stats)
{
	if (command->options->display_stats && command->options->json)
		stats_event(stats);
	else if (command->options->display_stats)
		print_stats(stats);
	if (command->options->json)
		report_event("done", NULL);
}

static int check_end_state(struct command *command, enum dump_end_state *ret_state)
{
	const struct options *options = command->options;

	if (options->leave_running && options->leave_stopped)
		return fail(&command->failure, EINVAL, "usage", "--leave-running", "give one of the two",
			    "contradicts --leave-stopped");
	*ret_state = options->leave_running   ? DUMP_END_RUNNING
		     : options->leave_stopped ? DUMP_END_STOPPED
					      : DUMP_END_KILL;
	return 0;
}

int verb_dump(struct command *command)
{
	const struct options *options = command->options;
	DumpStatsEntry stats = DUMP_STATS_ENTRY__INIT;
	struct dump_options dump_options;
	struct tracking tracking = {};
	size_t blockers;

	if (options->die_at && !strcmp(options->die_at, "list")) {
		for (const char *const *stage = dump_stages; *stage; stage++)
			puts(*stage);
		return 0;
	}
	dump_options_fill(command, &dump_options);
	int r = check_end_state(command, &dump_options.end_state);
	if (r < 0)
		return r;
	if (options->json)
		report_event("start", "{s:s, s:i}", "command", "dump", "tree", (int)options->tree);
	r = tracking_open(command, &dump_options, &tracking);
	if (!r)
		r = dump_run(&dump_options, &command->failure, &stats, &blockers);
	r = tracking_close(command, &tracking, r, dump_options.end_state != DUMP_END_KILL);
	progress_end(&command->progress);
	if (r < 0)
		return r;
	report_done(command, &stats);
	return 0;
}

int verb_pre_dump(struct command *command)
{
	DumpStatsEntry stats = DUMP_STATS_ENTRY__INIT;
	struct dump_options dump_options;
	struct tracking tracking = {};
	size_t blockers;

	dump_options_fill(command, &dump_options);
	dump_options.pre_dump = true;
	dump_options.pre_dump_mode = command->options->pre_dump_mode;
	dump_options.end_state = DUMP_END_RUNNING;
	if (command->options->json)
		report_event("start", "{s:s, s:i}", "command", "pre-dump", "tree", (int)dump_options.pid);
	int r = tracking_open(command, &dump_options, &tracking);
	if (!r)
		r = dump_run(&dump_options, &command->failure, &stats, &blockers);
	r = tracking_close(command, &tracking, r, true);
	progress_end(&command->progress);
	if (r < 0)
		return r;
	report_done(command, &stats);
	return 0;
}
