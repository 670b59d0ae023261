/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/migrate.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "dump/dump.h"
#include "dump/stopped.h"
#include "kernel/proc.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/shmem_track.h"
#include "kinds/mem/track.h"
#include "migrate/address.h"
#include "migrate/channel_sink.h"
#include "migrate/journal.h"
#include "migrate/memory_directory.h"
#include "migrate/page_channel.h"
#include "migrate/preflight.h"
#include "migrate/stream.h"
#include "migrate/throttle.h"
#include "model/dump.h"

const char *const migrate_states[] = {
	"connecting",  "preflight", "rounds", "round",    "between",   "frozen",  "last-pages",
	"last-images", "waiting",   "ready",  "deciding", "committed", "running", NULL,
};

/* A link that broke after the tree was given away is tried again for so long. */
enum { RECONNECT_SECONDS = 30, RECONNECT_PAUSE_MS = 500 };

struct migration {
	const struct migrate_options *options;
	struct failure failure;
	struct session session;
	struct preflight *preflight;
	struct page_channel *channel;
	struct channel_sink sink;
	struct memory_tracker *tracker;
	struct shmem_tracker *shared_memory;
	struct throttle *throttle; /* NULL = none */
	unsigned throttle_percent;
	struct page_channel_statistics sent; /* at the end of the round before */
	int images_dirfd;                    /* of the dump that goes on, or was last */
	uint32_t round;
	bool last;           /* this round is */
	bool addresses_gone; /* from this machine */
	bool stopped;        /* the tree is stopped by SIGSTOP, and not criu's */
	struct journal journal;
	bool journal_written;
	struct migrate_progress_report report;
	uint64_t begin_us, freeze_us;
	uint64_t round_us, frozen_us;             /* the round before: how long it took, and how long the tree stood */
	uint64_t shared_bytes, shared_sent_bytes; /* the round before: of shared memory looked at, and sent */
	double bytes_per_us;                      /* of memory, in the round before; 0 = not known */
	struct migrate_summary summary;
};

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void reach(struct migration *migration, const char *state)
{
	log_debug("migration: %s", state);
	migration->report.state = state;
	if (migration->options->progress)
		migration->options->progress(migration->options->context, &migration->report);
	if (migration->options->die_at && !strcmp(migration->options->die_at, state))
		kill(getpid(), SIGKILL);
}

static void write_journal(struct migration *migration, enum journal_state state)
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
	endpoint_text(&migration->options->endpoint, journal->peer, sizeof(journal->peer));
	migration->journal_written = true;
	/* It helps after a crash; without it people have to look for themselves. */
	if (journal_write(&failure, journal) < 0)
		log_warn("%s", failure_line(&failure, line, sizeof(line)));
}

/* ---- before ---- */

/* What a dump of the tree may do, for the rounds and for a look in advance. */
static struct dump_options dump_options_of(struct migration *migration)
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
	const struct dump_options dump = dump_options_of(migration);
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

	reach(migration, "preflight");
	for (size_t i = 0; i < options->address_count; i++)
		addresses[i] = address_text(&options->addresses[i], texts + i * ADDRESS_TEXT_BYTES);
	int error = preflight_run(&migration->session.protocol, &preflight, &migration->failure, &failed,
				  &migration->preflight);
	if (!error && failed)
		error = fail(&migration->failure, EREMOTE, "preflight-failed", NULL,
			     "the lines above say what helps; --skip-check NAME passes over one",
			     "nothing was moved: %zu thing%s would fail", failed, failed == 1 ? "" : "s");
	return error;
}

/* ---- rounds ---- */

static bool is_private_anonymous(const struct mapping *mapping)
{
	return !mapping->shared && !mapping->inode && mapping->name[0] != '/' &&
	       (mapping->name[0] != '[' || !strcmp(mapping->name, "[heap]") || !strncmp(mapping->name, "[anon", 5)) &&
	       !(mapping->flags & (MAPPING_GROWS_DOWN | MAPPING_DROPPABLE | MAPPING_HUGETLB | MAPPING_SHADOW_STACK));
}

static void describe_mappings(struct dump *dump, const struct mappings *mappings, MigrateTask *task)
{
	MigrateMapping *items = arena_alloc(&dump->arena, mappings->count * sizeof(*items));

	task->mappings = arena_alloc(&dump->arena, mappings->count * sizeof(*task->mappings));
	for (size_t i = 0; i < mappings->count; i++) {
		const struct mapping *mapping = &mappings->items[i];
		MigrateMapping *item = &items[task->n_mappings];
		if (!is_private_anonymous(mapping))
			continue;
		migrate_mapping__init(item);
		item->start = mapping->start;
		item->bytes = mapping->end - mapping->start;
		item->flags = MAP_PRIVATE | MAP_ANONYMOUS | (mapping->flags & MAPPING_NO_RESERVE ? MAP_NORESERVE : 0);
		item->protection = mapping->protection;
		item->has_huge = item->huge = mapping->advice >> MADV_HUGEPAGE & 1;
		task->mappings[task->n_mappings++] = item;
	}
}

/*
 * What the destination makes room for: memory of the root. While the tree runs, its mappings are read here once more,
 * with the flags that the pre-dump had no time for; what changes meanwhile is put right in the next round.
 */
static int describe_task(struct migration *migration, struct dump *dump, const struct dump_task *task,
			 MigrateTask *ret_task)
{
	struct mappings now = {};

	ret_task->pid = ret_task->space_id = task->pid;
	ret_task->start_time = task->start_time;
	ret_task->parent_pid = task->parent ? task->parent->pid : 0;
	if (task->parent)
		return 0;
	int error = migration->last ? 0 : mappings_read(task->proc_dirfd, &now);
	if (error < 0)
		return fail_errno(&migration->failure, error, "task-maps", dump_task_name(dump, task), NULL,
				  "cannot read its mappings");
	describe_mappings(dump, migration->last ? &task->memory->mappings : &now, ret_task);
	mappings_free(&now);
	return 0;
}

/* The other side maps what is announced, and says so before pages come. */
static int wait_until_mapped(struct migration *migration)
{
	for (;;) {
		struct message message;
		int error = protocol_receive(&migration->session.protocol, &migration->failure, &message);
		if (error < 0)
			return error;
		enum message_type type = message.type;
		if (type == MESSAGE_ABORT)
			error = protocol_take_abort((const MigrateAbort *)message.body, "destination",
						    &migration->failure);
		message_free(&message);
		if (error < 0 || type == MESSAGE_PROGRESS)
			return error;
	}
}

static int announce(struct migration *migration, struct dump *dump)
{
	MigrateTree tree = MIGRATE_TREE__INIT;
	RoundBegin begin = ROUND_BEGIN__INIT;
	MigrateTask *tasks = arena_alloc(&dump->arena, dump->task_count * sizeof(*tasks));

	tree.round = begin.round = migration->round;
	begin.last = migration->last;
	tree.tasks = arena_alloc(&dump->arena, dump->task_count * sizeof(*tree.tasks));
	int error = 0;
	for (size_t i = 0; i < dump->task_count && !error; i++) {
		if (!dump->tasks[i]->memory)
			continue;
		migrate_task__init(&tasks[i]);
		error = describe_task(migration, dump, dump->tasks[i], &tasks[i]);
		tree.tasks[tree.n_tasks++] = &tasks[i];
	}
	if (!error)
		error = protocol_send(&migration->session.protocol, MESSAGE_TREE, &tree, &migration->failure);
	if (!error)
		error = wait_until_mapped(migration);
	return error ? error
		     : protocol_send(&migration->session.protocol, MESSAGE_ROUND_BEGIN, &begin, &migration->failure);
}

/* Everything of the round is in place over there, and both sides agree how much it was. */
static int end_round(struct migration *migration)
{
	struct page_channel_statistics now;
	RoundEnd end = ROUND_END__INIT;
	_cleanup_message_ struct message message = {};
	int error = page_channel_barrier(migration->channel, &migration->failure);

	if (error < 0)
		return error;
	page_channel_statistics(migration->channel, &now);
	end.round = migration->round;
	end.pages = now.pages - migration->sent.pages;
	end.zero_pages = now.zero_pages - migration->sent.zero_pages;
	end.dropped_pages = now.dropped_pages - migration->sent.dropped_pages;
	migration->sent = now;
	error = protocol_send(&migration->session.protocol, MESSAGE_ROUND_END, &end, &migration->failure);
	return error ? error
		     : protocol_expect(&migration->session.protocol, MESSAGE_ROUND_ACK, &migration->failure, &message);
}

/* In dump_run(): what it reports as its own failure is the first one that is recorded. */
static int keep_failure(struct migration *migration, struct dump *dump, int error)
{
	if (error < 0)
		dump->failure = migration->failure;
	return error;
}

static int on_scanned(void *context, struct dump *dump)
{
	struct migration *migration = context;

	reach(migration, migration->last ? "last-pages" : "round");
	if (migration->throttle && !migration->last)
		throttle_go(migration->throttle);
	return keep_failure(migration, dump, announce(migration, dump));
}

/* ---- the last round ---- */

static int send_image(struct migration *migration, const char *name, uint32_t *count, uint64_t *bytes)
{
	_cleanup_fd_ int fd = openat(migration->images_dirfd, name, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ uint8_t *buffer = xcalloc(1, IMAGE_CHUNK_BYTES);
	ImageChunk chunk = IMAGE_CHUNK__INIT;
	struct stat stat;

	if (fd < 0 || fstat(fd, &stat) < 0)
		return fail_errno(&migration->failure, errno, "image-open", name, NULL, "cannot open it");
	chunk.name = (char *)name;
	chunk.data.data = buffer;
	do {
		uint64_t left = stat.st_size - chunk.offset;
		chunk.data.len = left < IMAGE_CHUNK_BYTES ? left : IMAGE_CHUNK_BYTES;
		chunk.last = chunk.data.len == left;
		int error = pread_full(fd, buffer, chunk.data.len, chunk.offset);
		if (error < 0)
			return fail_errno(&migration->failure, error, "image-read", name, NULL, "cannot read it");
		error = protocol_send(&migration->session.protocol, MESSAGE_IMAGE_CHUNK, &chunk, &migration->failure);
		if (error < 0)
			return error;
		chunk.offset += chunk.data.len;
	} while (!chunk.last);
	++*count;
	*bytes += stat.st_size;
	return 0;
}

static int send_images(struct migration *migration)
{
	ImagesEnd end = IMAGES_END__INIT;
	int error = 0, fd = openat(migration->images_dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_dir_ DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!directory)
		return fail_errno(&migration->failure, errno, "image-open", NULL, NULL, "cannot list the images");
	while (!error && (entry = readdir(directory)))
		if (entry->d_name[0] != '.')
			error = send_image(migration, entry->d_name, &end.files, &end.bytes);
	migration->summary.image_bytes = end.bytes;
	return error ? error
		     : protocol_send(&migration->session.protocol, MESSAGE_IMAGES_END, &end, &migration->failure);
}

/* The tree stands, held by criu: if anything fails from here to the end of this function, it runs on. */
static int hand_over(struct migration *migration)
{
	_cleanup_message_ struct message message = {};
	int error = end_round(migration);

	reach(migration, "last-images");
	if (!error)
		error = preflight_send_changed_files(migration->preflight, &migration->session.protocol,
						     &migration->failure);
	if (!error)
		error = send_images(migration);
	reach(migration, "waiting");
	if (!error)
		error = protocol_expect(&migration->session.protocol, MESSAGE_READY, &migration->failure, &message);
	reach(migration, "ready");
	return error;
}

static int on_written(void *context, struct dump *dump)
{
	struct migration *migration = context;

	return migration->last ? keep_failure(migration, dump, hand_over(migration)) : 0;
}

static const struct dump_steps dump_steps = {.scanned = on_scanned, .written = on_written};

/* One dump, whose pages go to the other side and whose small images stay in memory. */
static int run_round(struct migration *migration, bool last)
{
	struct dump_options dump = dump_options_of(migration);
	DumpStatsEntry stats;
	size_t blockers;
	uint64_t begin = now_us();

	close_fd_pointer(&migration->images_dirfd);
	migration->images_dirfd = -1;
	int error = memory_directory_open(&migration->failure, &migration->images_dirfd);
	if (error < 0)
		return error;
	dump.images_dirfd = dump.work_dirfd = migration->images_dirfd;
	dump.end_state = last ? DUMP_END_STOPPED : DUMP_END_RUNNING;
	dump.pre_dump = !last;
	dump.tracker = migration->tracker;
	dump.shared_memory = migration->shared_memory;
	dump.page_sink = &migration->sink.sink;
	dump.steps = &dump_steps;
	migration->last = last;
	migration->report.round = ++migration->round;
	error = dump_run(&dump, &migration->failure, &stats, &blockers);
	if (!error && !last)
		error = end_round(migration);
	if (migration->throttle)
		throttle_rest(migration->throttle);
	migration->frozen_us = stats.frozen_time;
	migration->shared_bytes = stats.shpages_scanned * FRAME_PAGE_BYTES;
	migration->shared_sent_bytes = stats.shpages_written * FRAME_PAGE_BYTES;
	migration->round_us = now_us() - begin;
	return error;
}

/* ---- when to stop ---- */

/* What the last round would cost if it began now, and what the user is shown. */
static int estimate(struct migration *migration, uint64_t sent_before, uint64_t *ret_downtime_us)
{
	/* Freezing, small images, the last steps over there: what a small tree costs on a usual machine. */
	enum { FIXED_US = 15000, HASHED_BYTES_PER_US = 8000 };
	struct migrate_progress_report *report = &migration->report;
	uint64_t sent_bytes = migration->sent.raw_bytes - sent_before, dirty_pages;
	int error = tracker_count_dirty(migration->tracker, &migration->failure, &dirty_pages);

	if (error < 0)
		return error;
	/* Little data says nothing about the link. */
	if (sent_bytes >= 1 << 20 || migration->bytes_per_us == 0)
		migration->bytes_per_us = (double)(sent_bytes + FRAME_PAGE_BYTES) / (double)migration->round_us;
	/*
	 * Of shared memory only a round tells what has changed. So it does of pages that children share since a fork:
	 * they are never armed, and count as changed.
	 */
	report->dirty_bytes = dirty_pages * FRAME_PAGE_BYTES + migration->shared_sent_bytes;
	if (report->dirty_bytes > sent_bytes)
		report->dirty_bytes = sent_bytes;
	report->dirty_bytes_per_second = report->dirty_bytes * 1000000 / migration->round_us;
	report->bytes_per_second = (uint64_t)(migration->bytes_per_us * 1e6);
	report->downtime_estimate_us = FIXED_US + migration->frozen_us + migration->shared_bytes / HASHED_BYTES_PER_US +
				       (uint64_t)((double)report->dirty_bytes / migration->bytes_per_us);
	*ret_downtime_us = report->downtime_estimate_us;
	return 0;
}

/* Memory changes faster than it goes: the tree gets less of the processor, a step more each round. */
static int slow_down(struct migration *migration)
{
	enum { FIRST_PERCENT = 20, STEP_PERCENT = 10, MOST_PERCENT = 95 };

	if (!migration->options->throttle)
		return 0;
	if (!migration->throttle) {
		int error = throttle_new(migration->options->pid, &migration->failure, &migration->throttle);
		if (error < 0)
			return error;
	}
	migration->throttle_percent += migration->throttle_percent ? STEP_PERCENT : FIRST_PERCENT;
	if (migration->throttle_percent > MOST_PERCENT)
		migration->throttle_percent = MOST_PERCENT;
	throttle_set(migration->throttle, migration->throttle_percent);
	return 0;
}

static int give_up_at_timeout(struct migration *migration)
{
	char object[32];

	snprintf(object, sizeof(object), "process %d", migration->options->pid);
	return fail(&migration->failure, ETIMEDOUT, "migrate-timeout", object,
		    "allow more with --downtime or --timeout, slow it down with --throttle, or choose "
		    "--at-timeout stop-and-copy",
		    "it changes memory faster than it can be sent: after %u rounds in %u s it would have to stand for "
		    "%lu ms",
		    migration->round, migration->options->timeout_seconds,
		    migration->report.downtime_estimate_us / 1000);
}

static bool is_time_over(const struct migration *migration)
{
	return migration->options->timeout_seconds &&
	       now_us() - migration->begin_us > migration->options->timeout_seconds * 1000000ULL;
}

/* Rounds until the rest is small enough. */
static int copy_running(struct migration *migration)
{
	uint64_t downtime_us, before = 0;

	for (;;) {
		uint64_t sent = migration->sent.raw_bytes;
		int error = run_round(migration, false);
		if (!error)
			error = estimate(migration, sent, &downtime_us);
		reach(migration, "between");
		if (error < 0 || downtime_us <= migration->options->downtime_ms * 1000ULL)
			return error;
		if (is_time_over(migration))
			return migration->options->at_timeout == MIGRATE_CANCEL ? give_up_at_timeout(migration) : 0;
		if (before && downtime_us > before - before / 10)
			error = slow_down(migration);
		if (error < 0)
			return error;
		before = downtime_us;
	}
}

static int copy(struct migration *migration)
{
	migration->tracker = tracker_new();
	migration->shared_memory = shmem_tracker_new();
	int error = copy_running(migration);
	if (error < 0)
		return error;
	if (migration->options->wire.bandwidth)
		page_channel_set_bandwidth(migration->channel, 0);
	migration->freeze_us = now_us();
	reach(migration, "frozen");
	uint64_t before = migration->sent.raw_bytes;
	error = run_round(migration, true);
	migration->summary.last_bytes = migration->sent.raw_bytes - before;
	if (!error)
		migration->stopped = true;
	return error;
}

/* ---- giving it away ---- */

static int change_addresses(struct migration *migration,
			    int (*change)(struct failure *failure, const struct moving_address *address))
{
	int error = 0;

	for (size_t i = 0; i < migration->options->address_count && !error; i++)
		error = change(&migration->failure, &migration->options->addresses[i]);
	return error;
}

/* The tree is stopped here and complete there. Until COMMIT is sent this side decides. */
static int commit(struct migration *migration)
{
	MigrateCommit message = MIGRATE_COMMIT__INIT;

	stream_set_cancel(migration->session.control, -1);
	int error = 0;

	write_journal(migration, JOURNAL_DECIDING);
	reach(migration, "deciding");
	if (migration->options->address_count) {
		migration->addresses_gone = true;
		error = change_addresses(migration, address_remove);
	}
	if (error < 0)
		return error;
	message.session_id.data = migration->session.id;
	message.session_id.len = SESSION_ID_BYTES;
	error = protocol_send(&migration->session.protocol, MESSAGE_COMMIT, &message, &migration->failure);
	reach(migration, "committed");
	return error;
}

static int wait_until_running(struct migration *migration)
{
	_cleanup_message_ struct message message = {};

	return protocol_expect(&migration->session.protocol, MESSAGE_RUNNING, &migration->failure, &message);
}

/* What the destination says of itself after a broken link. */
static int ask_again(struct migration *migration, enum migrate_state *ret_state)
{
	struct session again = {};
	struct failure failure = {};
	ResumeSession question = RESUME_SESSION__INIT;
	struct message message = {};
	uint8_t proof[SESSION_PROOF_BYTES];
	int error = session_reconnect(&again, &migration->options->endpoint, &migration->options->wire,
				      migration->session.id, migration->session.secret, &failure);

	if (!error) {
		session_proof(migration->session.secret, "criu resume", 0, 0, proof);
		question.session_id = (ProtobufCBinaryData){SESSION_ID_BYTES, migration->session.id};
		question.proof = (ProtobufCBinaryData){sizeof(proof), proof};
		question.state = MIGRATE_COMMITTED;
		error = protocol_send(&again.protocol, MESSAGE_RESUME_SESSION, &question, &failure);
	}
	if (!error)
		error = protocol_expect(&again.protocol, MESSAGE_SESSION_STATUS, &failure, &message);
	if (error < 0) {
		session_close(&again);
		return error;
	}
	*ret_state = ((const SessionStatus *)message.body)->state;
	message_free(&message);
	session_close(&migration->session);
	migration->session = again;
	migration->session.protocol.stream = migration->session.control;
	return 0;
}

/* After COMMIT the destination decides, and this side must learn what. */
static int learn_outcome(struct migration *migration, bool *ret_runs_there)
{
	const struct timespec pause = {.tv_nsec = RECONNECT_PAUSE_MS * 1000000L};
	uint64_t until = now_us() + RECONNECT_SECONDS * 1000000ULL;
	enum migrate_state state;

	while (now_us() < until) {
		if (ask_again(migration, &state) < 0) {
			nanosleep(&pause, NULL);
			continue;
		}
		if (state == MIGRATE_READY) {
			failure_clear(&migration->failure);
			if (commit(migration) < 0 || wait_until_running(migration) < 0)
				continue;
			state = MIGRATE_RUNNING;
		}
		*ret_runs_there = state == MIGRATE_RUNNING || state == MIGRATE_DONE;
		return 0;
	}
	return -ETIMEDOUT;
}

static int tell_undecided(struct migration *migration)
{
	char object[64];

	failure_clear(&migration->failure);
	snprintf(object, sizeof(object), "process %d", migration->options->pid);
	return fail(
		&migration->failure, EREMCHG, "migrate-undecided", object,
		"look at the other side: criu migrate --status; then here --abort if it runs there, --resume if not",
		"the link broke while it was handed over, and the other side cannot be asked: it is kept here, "
		"stopped");
}

static struct stopped_options stopped_tree(const struct migration *migration)
{
	return (struct stopped_options){
		.pid = migration->options->pid,
		.images_dirfd = migration->images_dirfd,
		.timeout_seconds = migration->options->freeze_timeout_seconds,
	};
}

static int take_back(struct migration *migration)
{
	const struct stopped_options options = stopped_tree(migration);
	struct failure cause = migration->failure, failure = {};

	failure_clear(&migration->failure);
	if (migration->addresses_gone && !change_addresses(migration, address_add))
		change_addresses(migration, address_announce);
	migration->failure = cause;
	if (stopped_tree_resume(&options, &failure) < 0) {
		migration->failure = failure;
		fail_in(&migration->failure, "the migration failed (%s), and the tree, stopped here, cannot go on",
			cause.cause);
	}
	migration->stopped = false;
	return -migration->failure.error;
}

static int release(struct migration *migration)
{
	const struct stopped_options options = stopped_tree(migration);
	PostCopyDone released = POST_COPY_DONE__INIT;
	struct failure ignored = {};

	reach(migration, "running");
	migration->summary.downtime_us = now_us() - migration->freeze_us;
	int error = stopped_tree_kill(&options, &migration->failure);
	protocol_send(&migration->session.protocol, MESSAGE_RELEASED, &released, &ignored);
	return error;
}

/* The two phases. Entry: stopped here, complete there. */
static int give_away(struct migration *migration)
{
	bool runs_there = false;
	int error = commit(migration);

	if (migration->session.protocol.state != MIGRATE_COMMITTED)
		return take_back(migration);
	if (!error)
		error = wait_until_running(migration);
	if (!error)
		return release(migration);
	/* The destination has said that it could not, and that nothing of the tree is left there. */
	if (migration->session.protocol.state == MIGRATE_ABORTED)
		return take_back(migration);
	if (learn_outcome(migration, &runs_there) < 0)
		return tell_undecided(migration);
	if (!runs_there)
		return take_back(migration);
	failure_clear(&migration->failure);
	return release(migration);
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
	};
	int error = page_channel_new(&options, &migration->failure, &migration->channel);

	if (!error)
		channel_sink_init(&migration->sink, migration->channel, NULL, NULL);
	return error;
}

static int move_tree(struct migration *migration, const struct wire_options *wire)
{
	reach(migration, "connecting");
	int error = session_connect(&migration->session, &migration->options->endpoint, wire, &migration->failure);

	if (!error)
		error = run_preflight(migration);
	if (error || wire->dry_run)
		return error;
	reach(migration, "rounds");
	error = open_channel(migration);
	write_journal(migration, JOURNAL_COPYING);
	if (!error)
		error = copy(migration);
	return error ? error : give_away(migration);
}

static void finish(struct migration *migration, int error)
{
	struct page_channel_statistics sent = {};
	bool undecided = error && !strcmp(migration->failure.code, "migrate-undecided");

	if (migration->channel)
		page_channel_statistics(migration->channel, &sent);
	migration->summary.total_us = now_us() - migration->begin_us;
	migration->summary.rounds = migration->round;
	migration->summary.memory_bytes = sent.raw_bytes;
	migration->summary.zero_bytes = sent.zero_pages * FRAME_PAGE_BYTES;
	migration->summary.wire_bytes = sent.wire_bytes;
	migration->summary.lz4_bytes = sent.codec_bytes[FRAME_LZ4];
	migration->summary.zstd_bytes = sent.codec_bytes[FRAME_ZSTD];
	if (error && !undecided)
		protocol_send_abort(&migration->session.protocol, &migration->failure);
	if (migration->journal_written && !undecided)
		journal_remove(&migration->journal);
	throttle_free(migration->throttle);
	tracker_free(migration->tracker);
	shmem_tracker_free(migration->shared_memory);
	page_channel_free(&migration->channel);
	preflight_free(&migration->preflight);
	session_close(&migration->session);
	close_fd_pointer(&migration->images_dirfd);
}

int migrate_run(const struct migrate_options *options, struct failure *failure, struct migrate_summary *ret_summary)
{
	struct migration migration = {.options = options, .images_dirfd = -1, .begin_us = now_us()};
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
	int error = move_tree(&migration, &wire);
	finish(&migration, error);
	*failure = migration.failure;
	*ret_summary = migration.summary;
	/* What has cancelled it must not also kill criu before it has said so. */
	while (error && read(signal_fd, &taken, sizeof(taken)) > 0)
		;
	sigprocmask(SIG_SETMASK, &previous, NULL);
	return error;
}
