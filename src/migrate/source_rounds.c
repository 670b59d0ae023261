/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A round is a dump whose pages go to the other side and whose small images stay in memory. While the tree runs it is a
 * pre-dump with a tracker; the last one is a dump that ends with a stopped tree.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/memory_directory.h"
#include "dump/dump.h"
#include "kernel/kernel_types.h"
#include "kernel/vm_flags.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/shmem_track.h"
#include "kinds/mem/track.h"
#include "migrate/migration.h"
#include "migrate/preflight.h"
#include "migrate/stream.h"
#include "migrate/throttle.h"
#include "model/dump.h"

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
	int error = migration->last
			    ? 0
			    : vm_flags_mappings_read(migration->vm_flags, task->pid, task->proc_dirfd, false, &now);
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
	_cleanup_message_ struct message message = {};
	int error = protocol_receive(&migration->session.protocol, &migration->failure, &message);

	if (error < 0 || message.type == MESSAGE_PROGRESS)
		return error;
	if (message.type == MESSAGE_ABORT)
		return protocol_take_abort((const MigrateAbort *)message.body, "destination", &migration->failure);
	return fail(&migration->failure, EPROTO, "protocol-state", migration->session.peer_host, NULL,
		    "%s arrived where PROGRESS was to come", message_name(message.type));
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
	migration->process_count = tree.n_tasks;
	if (!error)
		error = protocol_send(&migration->session.protocol, MESSAGE_TREE, &tree, &migration->failure);
	if (!error)
		error = wait_until_mapped(migration);
	return error ? error
		     : protocol_send(&migration->session.protocol, MESSAGE_ROUND_BEGIN, &begin, &migration->failure);
}

/*
 * Who hands pages over knows only that they are not taken. The channel knows more, and if it was the other side that
 * ended it, that has said why.
 */
static void find_cause(struct migration *migration)
{
	enum { ABORT_WAIT_MS = 1000 };
	_cleanup_message_ struct message message = {};
	struct stream *control = migration->session.control;
	struct failure cause = {}, ignored = {};

	if (!page_channel_failure(migration->channel, &cause))
		return;
	migration->failure = cause;
	if ((!strcmp(cause.code, "link-ended") || !strcmp(cause.code, "link-lost")) &&
	    stream_wait(control, ABORT_WAIT_MS) > 0 &&
	    !protocol_receive(&migration->session.protocol, &ignored, &message) && message.type == MESSAGE_ABORT) {
		failure_clear(&migration->failure);
		protocol_take_abort((const MigrateAbort *)message.body, "destination", &migration->failure);
	}
}

/* Everything of the round is in place over there, and both sides agree how much it was. */
static int end_round(struct migration *migration)
{
	struct page_channel_statistics now;
	RoundEnd end = ROUND_END__INIT;
	_cleanup_message_ struct message message = {};
	int error = page_channel_barrier(migration->channel, &migration->failure);

	if (error < 0) {
		find_cause(migration);
		return error;
	}
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

/* The tree stands: what is not sent is here to be asked for, by the restore already. */
static int leave_memory(struct migration *migration, struct dump *dump)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->memory)
			error = demand_memory_add(&migration->memory, dump->tasks[i]->pid, dump->tasks[i]->proc_dirfd);
	return error ? fail_errno(&migration->failure, error, "task-memory", NULL, NULL, "cannot open its memory")
		     : migration_serve_demand(migration);
}

static int on_scanned(void *context, struct dump *dump)
{
	struct migration *migration = context;
	int error = 0;

	migration_reach(migration, migration->last ? "last-pages" : "round");
	if (migration->throttle && !migration->last)
		throttle_go(migration->throttle);
	if (migration->last && migration->post_copy)
		error = leave_memory(migration, dump);
	return keep_failure(migration, dump, error ? error : announce(migration, dump));
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

	migration_reach(migration, "last-images");
	if (!error)
		error = preflight_send_changed_files(migration->preflight, &migration->session.protocol,
						     &migration->failure);
	if (!error)
		error = send_images(migration);
	migration_reach(migration, "waiting");
	if (!error)
		error = protocol_expect(&migration->session.protocol, MESSAGE_READY, &migration->failure, &message);
	migration_reach(migration, "ready");
	return error;
}

static int on_written(void *context, struct dump *dump)
{
	struct migration *migration = context;

	return migration->last ? keep_failure(migration, dump, hand_over(migration)) : 0;
}

/* The tree stands from here on, in the last round for good. */
static void on_freezing(void *context)
{
	struct migration *migration = context;

	migration->freeze_us = clock_now_us();
}

static const struct dump_steps dump_steps = {.freezing = on_freezing, .scanned = on_scanned, .written = on_written};

/* One dump, whose pages go to the other side and whose small images stay in memory. */
static int run_round(struct migration *migration, bool last)
{
	struct dump_options dump = migration_dump_options(migration);
	DumpStatsEntry stats;
	size_t blockers;
	uint64_t begin = clock_now_us();

	close_fd_pointer(&migration->images_dirfd);
	migration->images_dirfd = -1;
	int error = memory_directory_open(NULL, &migration->failure, &migration->images_dirfd);
	if (error < 0)
		return error;
	dump.images_dirfd = dump.work_dirfd = migration->images_dirfd;
	dump.end_state = last ? DUMP_END_STOPPED : DUMP_END_RUNNING;
	dump.pre_dump = !last;
	dump.lazy_pages = last && migration->post_copy;
	dump.tracker = migration->tracker;
	dump.tracking_ends = last;
	dump.vm_flags = migration->vm_flags;
	dump.shared_memory = migration->shared_memory;
	dump.page_sink = &migration->sink.sink;
	dump.steps = &dump_steps;
	migration->last = last;
	migration->report.round = ++migration->round;
	error = dump_run(&dump, &migration->failure, &stats, &blockers);
	if (!error && !last)
		error = end_round(migration);
	if (error < 0 && !strcmp(migration->failure.code, PAGE_SINK_FAILED))
		find_cause(migration);
	if (migration->throttle)
		throttle_rest(migration->throttle);
	migration->frozen_us = stats.frozen_time;
	migration->shared_bytes = stats.shpages_scanned * FRAME_PAGE_BYTES;
	migration->shared_sent_bytes = stats.shpages_written * FRAME_PAGE_BYTES;
	migration->round_us = clock_now_us() - begin;
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
	if (migration->fastest_bytes_per_us < migration->bytes_per_us)
		migration->fastest_bytes_per_us = migration->bytes_per_us;
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

/*
 * Whether the memory that is left goes in the time that is allowed. Rounds can make nothing else shorter: to stop a
 * large tree and to build it takes its time, and so does a round of it, however little is sent. A process also changes
 * a page or two by being stopped (its restartable sequence, its stack).
 */
static bool memory_fits(const struct migration *migration)
{
	enum { STOPPING_PAGES = 4 };
	uint64_t dirty_bytes = migration->report.dirty_bytes;
	uint64_t stopping_bytes = migration->process_count * STOPPING_PAGES * FRAME_PAGE_BYTES;
	uint64_t left_bytes = dirty_bytes > stopping_bytes ? dirty_bytes - stopping_bytes : 0;

	return (double)left_bytes / migration->fastest_bytes_per_us <= migration->options->downtime_ms * 1e3;
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
		    "--at-timeout stop-and-copy or post-copy",
		    "it changes memory faster than it can be sent: after %u rounds in %u s it would have to stand for "
		    "%lu ms",
		    migration->round, migration->options->timeout_seconds,
		    migration->report.downtime_estimate_us / 1000);
}

static bool is_time_over(const struct migration *migration)
{
	return migration->options->timeout_seconds &&
	       clock_now_us() - migration->begin_us > migration->options->timeout_seconds * 1000000ULL;
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
		migration_reach(migration, "between");
		if (error < 0 || downtime_us <= migration->options->downtime_ms * 1000ULL)
			return error;
		bool stuck = before && downtime_us > before - before / 10;
		if (stuck && memory_fits(migration))
			return 0;
		/* Nothing is gained by waiting for the end of the time. */
		if (migration->options->at_timeout == MIGRATE_POST_COPY &&
		    (is_time_over(migration) || (stuck && !migration->options->throttle))) {
			migration->post_copy = true;
			return 0;
		}
		if (is_time_over(migration))
			return migration->options->at_timeout == MIGRATE_CANCEL ? give_up_at_timeout(migration) : 0;
		if (stuck)
			error = slow_down(migration);
		if (error < 0)
			return error;
		before = downtime_us;
	}
}

/* Everything that can be there before the tree stops: the process that becomes its root, and the connections. */
static int prepare_post_copy(struct migration *migration)
{
	MigrateTree tree = MIGRATE_TREE__INIT;
	MigrateTask root = MIGRATE_TASK__INIT, *tasks[] = {&root};
	int error = 0;

	if (!(migration->session.features & MIGRATE_FEATURE_POST_COPY))
		return fail(&migration->failure, EOPNOTSUPP, "post-copy", migration->session.peer_host,
			    "leave --post-copy out", "the other side cannot let memory follow");
	if (!migration->round) {
		root.pid = migration->options->pid;
		root.space_id = (uint32_t)migration->options->pid;
		tree.tasks = tasks;
		tree.n_tasks = ARRAY_SIZE(tasks);
		error = protocol_send(&migration->session.protocol, MESSAGE_TREE, &tree, &migration->failure);
		if (!error)
			error = wait_until_mapped(migration);
	}
	return error ? error : migration_open_demand(migration);
}

int migration_copy(struct migration *migration)
{
	int error = 0;

	migration->post_copy = migration->options->post_copy;
	struct kernel_types *types = kernel_types_read();
	migration->vm_flags = vm_flags_open(types);
	kernel_types_free(types);
	if (!migration->post_copy) {
		migration->tracker = tracker_new();
		migration->shared_memory = shmem_tracker_new();
		error = copy_running(migration);
	}
	if (!error && migration->post_copy)
		error = prepare_post_copy(migration);
	if (error < 0)
		return error;
	if (migration->options->wire.bandwidth)
		page_channel_set_bandwidth(migration->channel, 0);
	migration_reach(migration, "frozen");
	uint64_t before = migration->sent.raw_bytes;
	error = run_round(migration, true);
	migration->summary.last_bytes = migration->sent.raw_bytes - before;
	if (!error)
		migration->stopped = true;
	return error;
}
