/* SPDX-License-Identifier: Apache-2.0 */
/* The source's half of the preflight. The destination's verdicts are in preflight_server.c. */
#include "migrate/preflight.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/fd.h"
#include "dump/dump.h"
#include "migrate/file_transfer.h"
#include "migrate/preflight_collect.h"
#include "migrate/protocol.h"

/* All that there are, in the order in which they are told. */
const char *const preflight_check_names[] = {"blockers", "cpu",       "kernel", "pids",   "files",
					     "mounts",   "addresses", "ports",  "memory", NULL};

struct sent_file {
	const MigrateFile *file;
	FileNeed now; /* blocks as the destination has them */
};

struct preflight {
	struct arena arena;
	PreflightRequest request;
	int root_dirfd; /* of the tree */
	struct sent_file *sent;
	size_t sent_count, sent_capacity;
};

void preflight_free(struct preflight **preflight)
{
	struct preflight *freed = *preflight;

	if (!freed)
		return;
	*preflight = NULL;
	for (size_t i = 0; i < freed->sent_count; i++)
		free(freed->sent[i].now.blocks);
	free(freed->sent);
	if (freed->root_dirfd >= 0)
		close(freed->root_dirfd);
	arena_free(&freed->arena);
	free(freed);
}

/* ---- checks ---- */

/* One run: whom to tell, and what was told. */
struct run {
	const struct preflight_options *options;
	size_t failed;
	unsigned told; /* bits: index in preflight_check_names */
};

static bool is_skipped(const struct preflight_options *options, const char *name)
{
	for (size_t i = 0; i < options->skip_count; i++)
		if (!strcmp(options->skip[i], name))
			return true;
	return false;
}

static void tell(struct run *run, const struct preflight_check *check)
{
	for (size_t i = 0; preflight_check_names[i]; i++)
		if (!strcmp(preflight_check_names[i], check->name))
			run->told |= 1u << i;
	run->failed += check->verdict == PREFLIGHT_FAILED;
	if (run->options->check)
		run->options->check(run->options->context, check);
}

static void tell_blocker(void *context, const struct failure *blocker)
{
	struct run *run = context;
	const struct preflight_check check = {
		.name = "blockers",
		.verdict = is_skipped(run->options, "blockers") ? PREFLIGHT_SKIPPED : PREFLIGHT_FAILED,
		.failure = *blocker,
	};

	tell(run, &check);
}

/* What the dump would refuse. */
static int look_for_blockers(struct run *run, struct failure *failure)
{
	struct dump_options options = *run->options->dump;
	DumpStatsEntry stats = DUMP_STATS_ENTRY__INIT;
	size_t blockers;

	options.explain = true;
	options.blocker = tell_blocker;
	options.progress = NULL;
	options.scripts = NULL;
	options.page_sink = NULL;
	options.die_at = NULL;
	options.context = run;
	return dump_run(&options, failure, &stats, &blockers);
}

static void tell_answer(struct run *run, const PreflightAnswer *answer)
{
	for (size_t i = 0; i < answer->n_checks; i++) {
		const MigrateCheck *from = answer->checks[i];
		struct preflight_check check = {.name = from->name, .verdict = from->verdict};

		fail(&check.failure, EHOSTUNREACH, from->code, from->object, from->hint, "%s", from->cause);
		tell(run, &check);
	}
}

static void tell_passed(struct run *run)
{
	for (size_t i = 0; preflight_check_names[i]; i++) {
		const struct preflight_check check = {.name = preflight_check_names[i], .verdict = PREFLIGHT_PASSED};

		if (!(run->told & (1u << i)) && run->options->check)
			run->options->check(run->options->context, &check);
	}
}

/* ---- asking ---- */

static int ask(struct preflight *preflight, struct protocol *protocol, struct failure *failure,
	       struct message *ret_message)
{
	int r = protocol_send(protocol, MESSAGE_PREFLIGHT_REQUEST, &preflight->request, failure);

	return r ?: protocol_expect(protocol, MESSAGE_PREFLIGHT_ANSWER, failure, ret_message);
}

static int send_files(struct preflight *preflight, struct protocol *protocol, const struct preflight_options *options,
		      const PreflightAnswer *answer, struct failure *failure)
{
	for (size_t i = 0; i < answer->n_files; i++) {
		const FileNeed *need = answer->files[i];

		if (need->file >= preflight->request.n_files)
			return fail(failure, EPROTO, "protocol-message", "PREFLIGHT_ANSWER", NULL,
				    "a file is wanted that was not named");
		ARRAY_GROW(preflight->sent, preflight->sent_count, preflight->sent_capacity);
		struct sent_file *sent = &preflight->sent[preflight->sent_count];
		*sent = (struct sent_file){.file = preflight->request.files[need->file]};
		preflight->sent_count++;
		int r = file_send(protocol, preflight->root_dirfd, sent->file, need, &sent->now, options->file,
				  options->context, failure);
		if (r < 0)
			return r;
	}
	return 0;
}

static void fill_request(struct preflight *preflight, const struct preflight_options *options)
{
	PreflightRequest *request = &preflight->request;

	request->send_files = options->send_files;
	request->skip = (char **)options->skip;
	request->n_skip = options->skip_count;
	request->moved_addresses = (char **)options->moved_addresses;
	request->n_moved_addresses = options->moved_address_count;
	request->new_pid_namespace = options->new_pid_namespace;
}

static int run_checks(struct preflight *preflight, struct protocol *protocol, struct run *run, struct failure *failure)
{
	const struct preflight_options *options = run->options;
	_cleanup_message_ struct message first = {}, second = {};
	const struct message *last = &first;

	int r = look_for_blockers(run, failure);
	if (!r)
		r = preflight_collect(options->dump->pid, &preflight->arena, &preflight->request, failure);
	if (r < 0)
		return r;
	fill_request(preflight, options);
	r = ask(preflight, protocol, failure, &first);
	if (!r && ((PreflightAnswer *)first.body)->n_files) {
		r = send_files(preflight, protocol, options, (PreflightAnswer *)first.body, failure);
		preflight->request.send_files = false;
		if (!r)
			r = ask(preflight, protocol, failure, &second);
		last = &second;
	}
	if (r < 0)
		return r;
	tell_answer(run, (PreflightAnswer *)last->body);
	tell_passed(run);
	return 0;
}

int preflight_run(struct protocol *protocol, const struct preflight_options *options, struct failure *failure,
		  size_t *ret_failed, struct preflight **ret_preflight)
{
	struct preflight *preflight = xcalloc(1, sizeof(*preflight));
	struct run run = {.options = options};
	char path[32];

	preflight_request__init(&preflight->request);
	snprintf(path, sizeof(path), "/proc/%d/root", options->dump->pid);
	preflight->root_dirfd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int r = run_checks(preflight, protocol, &run, failure);
	if (r < 0) {
		preflight_free(&preflight);
		return r;
	}
	*ret_failed = run.failed;
	*ret_preflight = preflight;
	return 0;
}

int preflight_send_changed_files(struct preflight *preflight, struct protocol *protocol, struct failure *failure)
{
	for (size_t i = 0; i < preflight->sent_count; i++) {
		struct sent_file *sent = &preflight->sent[i];

		if (!(sent->file->use & PREFLIGHT_FILE_WRITTEN))
			continue;
		int r = file_send(protocol, preflight->root_dirfd, sent->file, &sent->now, NULL, NULL, NULL, failure);
		if (r < 0)
			return r;
	}
	return 0;
}
