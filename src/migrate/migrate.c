/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/migrate.h"

#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "dump/dump.h"
#include "kernel/proc.h"
#include "kernel/vm_flags.h"
#include "kinds/mem/shmem_track.h"
#include "kinds/mem/track.h"
#include "migrate/address.h"
#include "migrate/migration.h"
#include "migrate/preflight.h"
#include "migrate/throttle.h"

const char *const migrate_states[] = {
	"connecting", "preflight", "rounds",   "round",     "between", "frozen",    "last-pages", "last-images",
	"waiting",    "ready",     "deciding", "committed", "running", "following", NULL,
};

void migration_reach(struct migration *migration, const char *state)
{
	log_debug("migration: %s", state);
	migration->report.state = state;
	if (migration->options->progress)
		migration->options->progress(migration->options->context, &migration->report);
	if (migration->options->die_at && !strcmp(migration->options->die_at, state))
		kill(getpid(), SIGKILL);
}

void migration_write_journal(struct migration *migration, enum journal_state state)
{
	struct journal *journal = &migration->journal;
	struct failure failure = {};
	char line[1024];
	struct proc_stat stat;
	_cleanup_fd_ int fd = proc_open(migration->options->pid);

	journal->role = JOURNAL_SOURCE;
	journal->state = state;
	journal->pid = migration->options->pid;
	journal->criu = getpid();
	if (fd >= 0 && !proc_read_stat(fd, "stat", &stat))
		journal->start_time = stat.start_time;
	snprintf(journal->session, sizeof(journal->session), "%s", migration->session.join_id);
	if (state != JOURNAL_COPYING)
		journal_set_secret(journal, migration->session.secret);
	endpoint_text(&migration->options->endpoint, journal->peer, sizeof(journal->peer));
	/* Whoever repeats the command may leave them out. */
	if (migration->options->address_count)
		journal_set_addresses(journal, migration->options->addresses, migration->options->address_count);
	migration->journal_written = true;
	/* It helps after a crash; without it people have to look for themselves. */
	if (journal_write(&failure, journal) < 0)
		log_warn("%s", failure_line(&failure, line, sizeof(line)));
}

/* ---- before ---- */

struct dump_options migration_dump_options(struct migration *migration)
{
	const struct migrate_options *options = migration->options;

	return (struct dump_options){
		.pid = options->pid,
		.images_dirfd = -1,
		.work_dirfd = -1,
		.shell_job = options->shell_job,
		.tcp_established = true,
		.link_remap = true,
		.ghost_limit_bytes = options->ghost_limit_bytes,
		.timeout_seconds = options->freeze_timeout_seconds,
		.context = migration,
	};
}

static void show_check(void *context, const struct preflight_check *check)
{
	const struct migration *migration = context;

	if (migration->options->check)
		migration->options->check(migration->options->context, check);
}

static int run_preflight(struct migration *migration)
{
	const struct migrate_options *options = migration->options;
	const struct dump_options dump = migration_dump_options(migration);
	_cleanup_free_ char *texts = xcalloc(options->address_count + 1, ADDRESS_TEXT_BYTES);
	_cleanup_free_ const char **addresses = xcalloc(options->address_count + 1, sizeof(*addresses));
	const struct preflight_options preflight = {
		.dump = &dump,
		.skip = options->skip_checks,
		.skip_count = options->skip_check_count,
		.send_files = options->send_files,
		.moved_addresses = addresses,
		.moved_address_count = options->address_count,
		.check = show_check,
		.context = migration,
	};
	size_t failed = 0;

	migration_reach(migration, "preflight");
	for (size_t i = 0; i < options->address_count; i++)
		addresses[i] = address_text(&options->addresses[i], texts + i * ADDRESS_TEXT_BYTES);
	int error = preflight_run(&migration->session.protocol, &preflight, &migration->failure, &failed,
				  &migration->preflight);
	if (!error && failed)
		error = fail(&migration->failure, EREMOTE, "preflight-failed", NULL,
			     "`criu migrate` tells each and what helps; --skip-check NAME passes over one",
			     "nothing was moved: %zu thing%s would fail", failed, failed == 1 ? "" : "s");
	return error;
}

/* ---- all of it ---- */

static int open_channel(struct migration *migration)
{
	struct session *session = &migration->session;
	const struct page_channel_options options = {
		.streams = session->data,
		.stream_count = session->data_count,
		.compress = migration->options->wire.codec,
		.codecs = session->codecs,
		.bytes_per_second = migration->options->wire.bandwidth,
		.patience_ns = migration->options->link_timeout_seconds * 1000000000ULL,
	};
	int error = page_channel_new(&options, &migration->failure, &migration->channel);

	if (!error)
		channel_sink_init(&migration->sink, migration->channel);
	return error;
}

void migration_close_channel(struct migration *migration)
{
	if (migration->channel)
		page_channel_statistics(migration->channel, &migration->sent);
	page_channel_free(&migration->channel);
}

/* An earlier criu has ended in the midst of giving the tree away. */
static bool find_unfinished(struct migration *migration, struct journal *ret_journal)
{
	struct failure ignored = {};

	return !journal_find(&ignored, JOURNAL_SOURCE, migration->options->pid, ret_journal) &&
	       ret_journal->state != JOURNAL_COPYING && kill(ret_journal->criu, 0) < 0;
}

static int move_tree(struct migration *migration)
{
	const struct wire_options *wire = migration->wire;
	struct journal earlier;

	if (find_unfinished(migration, &earlier) && !wire->dry_run)
		return migration_go_on(migration, &earlier);
	/* The other side need not be troubled with a pid that was mistyped. */
	int error = dump_check_pid(migration->options->pid, &migration->failure);
	if (!error)
		error = addresses_check(&migration->failure, migration->options->addresses,
					migration->options->address_count);
	if (error)
		return error;
	migration_reach(migration, "connecting");
	error = session_connect(&migration->session, &migration->options->endpoint, wire, &migration->failure);
	if (!error)
		error = run_preflight(migration);
	if (error || wire->dry_run)
		return error;
	/* Not before: a destination may read large files to find what of them is to be sent. */
	migration_limit_silence(migration);
	migration_reach(migration, "rounds");
	error = open_channel(migration);
	migration_write_journal(migration, JOURNAL_COPYING);
	if (!error)
		error = migration_copy(migration);
	return error ? error : migration_give_away(migration);
}

static void finish(struct migration *migration, int error)
{
	/* Somebody has to decide, or to go on. */
	bool undecided = error && (!strcmp(migration->failure.code, "migrate-undecided") ||
				   !strcmp(migration->failure.code, "migrate-following"));

	migration_close_channel(migration);
	migration_end_demand(migration);
	demand_memory_free(&migration->memory);
	const struct page_channel_statistics sent = migration->sent;
	const struct demand_statistics followed = migration->followed;
	migration->summary.total_us = clock_now_us() - migration->begin_us;
	migration->summary.rounds = migration->round;
	migration->summary.memory_bytes = sent.raw_bytes;
	migration->summary.zero_bytes = (sent.zero_pages + followed.zero_pages) * FRAME_PAGE_BYTES;
	migration->summary.wire_bytes = sent.wire_bytes + followed.wire_bytes;
	migration->summary.follow_bytes = followed.pages * FRAME_PAGE_BYTES;
	migration->summary.faults = followed.faults;
	migration->summary.lz4_bytes = sent.codec_bytes[FRAME_LZ4];
	migration->summary.zstd_bytes = sent.codec_bytes[FRAME_ZSTD];
	if (error && !undecided)
		protocol_send_abort(&migration->session.protocol, &migration->failure);
	if (migration->journal_written && !undecided)
		journal_remove(&migration->journal);
	throttle_free(migration->throttle);
	tracker_free(migration->tracker);
	vm_flags_close(migration->vm_flags);
	shmem_tracker_free(migration->shared_memory);
	preflight_free(&migration->preflight);
	session_close(&migration->session);
	close_fd_pointer(&migration->images_dirfd);
}

int migrate_run(const struct migrate_options *options, struct failure *failure, struct migrate_summary *ret_summary)
{
	struct migration migration = {.options = options, .images_dirfd = -1, .begin_us = clock_now_us()};
	struct wire_options wire = options->wire;
	sigset_t termination, previous;

	/* They cancel whatever waits; once the tree is given away, they wait themselves. */
	sigemptyset(&termination);
	sigaddset(&termination, SIGINT);
	sigaddset(&termination, SIGTERM);
	sigaddset(&termination, SIGHUP);
	sigprocmask(SIG_BLOCK, &termination, &previous);
	_cleanup_fd_ int signal_fd = signalfd(-1, &termination, SFD_CLOEXEC | SFD_NONBLOCK);
	struct signalfd_siginfo taken;
	wire.cancel_fd = signal_fd;
	migration.wire = &wire;
	int error = move_tree(&migration);
	finish(&migration, error);
	*failure = migration.failure;
	*ret_summary = migration.summary;
	/* What has cancelled it must not also kill criu before it has said so. */
	while (error && read(signal_fd, &taken, sizeof(taken)) > 0)
		;
	sigprocmask(SIG_SETMASK, &previous, NULL);
	return error;
}
