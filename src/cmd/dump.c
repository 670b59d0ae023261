/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "cmd/command.h"
#include "cmd/dump_options.h"
#include "cmd/page_options.h"
#include "cmd/tracking.h"
#include "dump/capture.h"
#include "dump/dump.h"
#include "dump/stopped.h"
#include "migrate/lazy_dump.h"
#include "migrate/page_client.h"
#include "model/dump.h"

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

/* ---- a page server on the other side ---- */

struct remote_dump {
	struct command *command;
	struct page_client *client;
};

static void show_remote_progress(void *context, const struct progress *progress)
{
	progress_show(&((struct remote_dump *)context)->command->progress, progress);
}

/* The tree may end only when the server has all of its memory. */
static int finish_pages(void *context, struct dump *dump)
{
	return page_client_finish(((struct remote_dump *)context)->client, &dump->failure);
}

static int dump_to_server(struct command *command, struct dump_options *dump_options, DumpStatsEntry *ret_stats)
{
	static const struct dump_steps steps = {.written = finish_pages};
	struct remote_dump remote = {.command = command};
	_cleanup_page_link_options_ struct page_link_options link = {};
	size_t blockers;

	int error = page_link_options_load(command, &link);
	if (!error)
		error = page_client_open(&link, &command->failure, &remote.client);
	if (error < 0)
		return error;
	dump_options->page_sink = page_client_sink(remote.client);
	dump_options->steps = &steps;
	dump_options->progress = show_remote_progress;
	dump_options->context = &remote;
	error = dump_run(dump_options, &command->failure, ret_stats, &blockers);
	page_client_free(remote.client);
	return error;
}

/* ---- an image streamer ---- */

struct streamed_dump {
	struct command *command;
	struct capture *capture;
};

static void show_streamed_progress(void *context, const struct progress *progress)
{
	progress_show(&((struct streamed_dump *)context)->command->progress, progress);
}

/* The tree may end only when the streamer has everything. */
static int finish_capture(void *context, struct dump *dump)
{
	return capture_finish(((struct streamed_dump *)context)->capture, &dump->failure);
}

static int dump_to_streamer(struct command *command, struct dump_options *dump_options, DumpStatsEntry *ret_stats)
{
	static const struct dump_steps steps = {.written = finish_capture};
	struct streamed_dump streamed = {.command = command};
	size_t blockers;

	int error = capture_open(command->images_dirfd, &command->failure, &streamed.capture);
	if (error < 0)
		return error;
	dump_options->images_dirfd = capture_directory(streamed.capture);
	dump_options->page_sink = capture_sink(streamed.capture);
	dump_options->steps = &steps;
	dump_options->progress = show_streamed_progress;
	dump_options->context = &streamed;
	error = dump_run(dump_options, &command->failure, ret_stats, &blockers);
	capture_free(streamed.capture);
	return error;
}

/* ---- memory that stays until it is fetched ---- */

struct lazy_dumping {
	struct command *command;
	struct lazy_dump *lazy;
};

static void show_lazy_progress(void *context, const struct progress *progress)
{
	progress_show(&((struct lazy_dumping *)context)->command->progress, progress);
}

static int note_pages(void *context, struct dump *dump)
{
	return lazy_dump_note(((struct lazy_dumping *)context)->lazy, dump);
}

/* The tree is stopped and all but its memory is written. */
static int serve_pages(struct command *command, struct lazy_dump *lazy, const struct page_link_options *link,
		       int listen_fd, unsigned port)
{
	const struct stopped_options stopped = {
		.pid = command->options->tree,
		.images_dirfd = command->images_dirfd,
		.timeout_seconds = options_stop_seconds(command->options),
	};

	progress_end(&command->progress);
	server_ready(command->options, port);
	int error = lazy_dump_serve(lazy, link, listen_fd, &command->failure);
	return error ? error : stopped_tree_kill(&stopped, &command->failure);
}

static int dump_lazily(struct command *command, struct dump_options *dump_options, DumpStatsEntry *ret_stats)
{
	static const struct dump_steps steps = {.written = note_pages};
	struct lazy_dumping own = {.command = command};
	_cleanup_fd_ int listen_fd = -1;
	_cleanup_page_link_options_ struct page_link_options link = {};
	uint16_t port = 0;
	size_t blockers;

	if (dump_options->end_state != DUMP_END_KILL)
		return fail(&command->failure, EINVAL, "usage", "--lazy-pages", NULL,
			    "ends the tree: it cannot be with --leave-running or --leave-stopped");
	int error = page_link_options_load(command, &link);
	if (!error)
		error = page_link_listen(&link, &command->failure, &listen_fd, &port);
	if (error < 0)
		return error;
	own.lazy = lazy_dump_new();
	dump_options->lazy_pages = true;
	dump_options->end_state = DUMP_END_STOPPED;
	dump_options->steps = &steps;
	dump_options->progress = show_lazy_progress;
	dump_options->context = &own;
	error = dump_run(dump_options, &command->failure, ret_stats, &blockers);
	if (!error)
		error = serve_pages(command, own.lazy, &link, listen_fd, port);
	lazy_dump_free(own.lazy);
	return error;
}

static int run_dump(struct command *command, struct dump_options *dump_options, DumpStatsEntry *ret_stats)
{
	size_t blockers;

	if (command->options->stream)
		return dump_to_streamer(command, dump_options, ret_stats);
	if (command->options->lazy_pages)
		return dump_lazily(command, dump_options, ret_stats);
	if (command->options->page_server)
		return dump_to_server(command, dump_options, ret_stats);
	return dump_run(dump_options, &command->failure, ret_stats, &blockers);
}

int verb_dump(struct command *command)
{
	const struct options *options = command->options;
	DumpStatsEntry stats = DUMP_STATS_ENTRY__INIT;
	struct dump_options dump_options;
	struct tracking tracking = {};

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
		r = run_dump(command, &dump_options, &stats);
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

	dump_options_fill(command, &dump_options);
	dump_options.pre_dump = true;
	dump_options.pre_dump_mode = command->options->pre_dump_mode;
	dump_options.end_state = DUMP_END_RUNNING;
	if (command->options->json)
		report_event("start", "{s:s, s:i}", "command", "pre-dump", "tree", (int)dump_options.pid);
	int r = tracking_open(command, &dump_options, &tracking);
	if (!r)
		r = run_dump(command, &dump_options, &stats);
	r = tracking_close(command, &tracking, r, true);
	progress_end(&command->progress);
	if (r < 0)
		return r;
	report_done(command, &stats);
	return 0;
}
