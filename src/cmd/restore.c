/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/restore.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/fd.h"
#include "image/page_chain.h"
#include "cmd/command.h"

#include "stats.pb-c.h"

static void restore_options_fill(struct command *command, struct restore_options *ret_options)
{
	const struct options *options = command->options;

	*ret_options = (struct restore_options){
		.pid = options->tree,
		.images_dirfd = command->images_dirfd,
		.work_dirfd = command->work_dirfd,
		.detached = options->restore_detached || options->exec_command,
		.stream = options->stream,
		.lazy_pages = options->lazy_pages,
		.sibling = options->restore_sibling,
		.shell_job = options->shell_job,
		.tcp_established = options->tcp_established,
		.tcp_close = options->tcp_close,
		.leave_stopped = options->leave_stopped,
		.show_plan = options->show_plan,
		.exec_command = options->exec_command,
		.command = options->positional,
		.pidfile = options->pidfile,
		.scripts = command->scripts.count ? &command->scripts : NULL,
		.progress = progress_show,
		.context = &command->progress,
	};
}

static int check_usage(struct command *command)
{
	const struct options *options = command->options;

	if (options->exec_command && !options->positional_count)
		return fail(&command->failure, EINVAL, "usage", "--exec-cmd", NULL, "needs a command after --");
	if (!options->exec_command && options->positional_count)
		return fail(&command->failure, EINVAL, "usage", NULL, "give --exec-cmd if it is a command to execute",
			    "unexpected word \"%s\"", options->positional[0]);
	if (options->leave_stopped && !options->restore_detached && !options->exec_command)
		return fail(&command->failure, EINVAL, "usage", "--leave-stopped", "add --restore-detached",
			    "criu would wait for a tree that does not run");
	if (options->auto_dedup && options->lazy_pages)
		return fail(&command->failure, EINVAL, "usage", "--auto-dedup",
			    "remove the images when `criu lazy-pages` has ended",
			    "contradicts --lazy-pages: the pages are needed after the tree runs");
	if (options->restore_sibling && !options->restore_detached)
		return fail(&command->failure, EINVAL, "usage", "--restore-sibling", "add --restore-detached",
			    "criu cannot wait for a sibling");
	return 0;
}

/* Reads back what the restore has left in the work directory: two magics, a length, the message. Returns NULL if not.
 */
static StatsEntry *read_stats(int work_dirfd)
{
	enum { HEADER_BYTES = 12 };
	char *data = NULL;
	size_t length = 0;
	StatsEntry *stats = NULL;

	if (read_text_at(work_dirfd, "stats-restore", &data, &length) == 0 && length > HEADER_BYTES)
		stats = stats_entry__unpack(NULL, length - HEADER_BYTES, (uint8_t *)data + HEADER_BYTES);
	free(data);
	return stats;
}

static void print_stats(const struct command *command)
{
	StatsEntry *entry = read_stats(command->work_dirfd);
	const RestoreStatsEntry *stats = entry ? entry->restore : NULL;

	if (stats && command->options->json) {
		report_event("stats", "{s:I, s:I, s:I}", "forking_time_us", (int64_t)stats->forking_time,
			     "restore_time_us", (int64_t)stats->restore_time, "pages_restored",
			     (int64_t)stats->pages_restored);
	} else if (stats) {
		printf("Displaying restore stats:\n");
		printf("Pages compared: %" PRIu64 "\n", stats->pages_compared);
		printf("Pages skipped COW: %" PRIu64 "\n", stats->pages_skipped_cow);
		printf("Pages restored: %" PRIu64 "\n", stats->pages_restored);
		printf("Restore time: %u us\n", stats->restore_time);
		printf("Forking time: %u us\n", stats->forking_time);
	}
	if (entry)
		stats_entry__free_unpacked(entry, NULL);
}

int verb_restore(struct command *command)
{
	const struct options *options = command->options;
	struct restore_options restore_options;
	int status = 0;
	int r = check_usage(command);

	if (r < 0)
		return r;
	restore_options_fill(command, &restore_options);
	if (options->json)
		report_event("start", "{s:s, s:i}", "command", "restore", "tree", (int)options->tree);
	r = restore_run(&restore_options, &command->failure, &status);
	progress_end(&command->progress);
	/* Only now: a restore that fails must leave its images. */
	if (!r && options->auto_dedup && !options->show_plan)
		r = images_dedup(command->images_dirfd, true, &command->failure, &(uint64_t){0});
	if (r < 0)
		return r;
	if (options->display_stats)
		print_stats(command);
	if (options->json)
		report_event("done", "{s:i}", "status", status);
	command->exit_status = status;
	return 0;
}
