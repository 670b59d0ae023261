/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receive.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/memory_directory.h"
#include "image/image.h"
#include "kernel/proc.h"
#include "migrate/arriving_addresses.h"
#include "migrate/cradle.h"
#include "migrate/fetch.h"
#include "migrate/journal.h"
#include "migrate/preflight.h"
#include "migrate/root.h"
#include "migrate/session_link.h"
#include "migrate/stream.h"

enum {
	MAX_IMAGES = 1 << 20,
	/* How long a source whose link broke after it was told to go on may take to come back for the answer. */
	RETURN_TIMEOUT_MS = 60 * 1000,
};

const char *const receive_states[] = {
	"preflight", "rounds", "round", "last-round", "restoring", "built", "committed", "running", "following", NULL,
};

struct reception {
	const struct receive_options *options;
	struct failure failure;
	struct session session;
	int images_dirfd;
	uint32_t images;
	uint64_t image_bytes;
	int image_fd; /* the image file that arrives */
	char image_name[IMAGE_NAME_BYTES];
	uint64_t image_offset; /* where its next part goes */
	struct restore_options restore;
	struct cradle_options cradle_options;
	struct preflight_server *preflight;
	struct cradle *cradle;
	struct page_receiver_statistics counted; /* at the end of the round before */
	struct page_receiver_statistics heard;   /* when the source had been silent for long */
	pid_t root_pid;
	struct arriving_addresses addresses;
	struct journal journal;
	bool journal_written, tree_runs, finished;
	uint64_t images_ns, ready_ns;
	/* Post-copy: connections to the source's memory, and what brings it. */
	struct stream *demand[MIGRATE_MAX_CONNECTIONS + 1];
	size_t demand_count;
	int fetch_dirfd;     /* -1 = no post-copy */
	struct fetch *fetch; /* NULL = nothing is being fetched, now */
	bool complete;       /* nothing is missing any more */
};

/* Before the name of a state: tests look around in it, and send SIGCONT. */
#define STOP_AT "stop-"

static void reach(struct reception *reception, const char *state)
{
	const char *die_at = reception->options->die_at;

	log_debug("migration: %s", state);
	if (die_at && !strcmp(die_at, state))
		kill(getpid(), SIGKILL);
	if (die_at && !strncmp(die_at, STOP_AT, strlen(STOP_AT)) && !strcmp(die_at + strlen(STOP_AT), state))
		kill(getpid(), SIGSTOP);
}

static void note(struct reception *reception, const char *text)
{
	log_warn("%s", text);
	if (reception->options->report && reception->options->report->note)
		reception->options->report->note(reception->options->report->context, text);
}

static void write_journal(struct reception *reception, enum journal_state state)
{
	struct journal *journal = &reception->journal;
	struct failure failure = {};
	struct proc_stat stat;
	char line[1024];

	journal->role = JOURNAL_DESTINATION;
	journal->state = state;
	journal->pid = reception->root_pid;
	journal->criu = getpid();
	/* Before, it is another process's pid that is to be the root's. */
	_cleanup_fd_ int proc_dirfd = state == JOURNAL_COPYING ? -1 : proc_open(reception->root_pid);
	if (proc_dirfd >= 0 && !proc_read_stat(proc_dirfd, "stat", &stat))
		journal->start_time = stat.start_time;
	snprintf(journal->session, sizeof(journal->session), "%s", reception->session.join_id);
	snprintf(journal->peer, sizeof(journal->peer), "%s", reception->session.peer_host);
	if (state == JOURNAL_FETCHING)
		journal_set_secret(journal, reception->session.secret);
	reception->journal_written = true;
	/* It helps after a crash; without it people have to look for themselves. */
	if (journal_write(&failure, journal) < 0)
		log_warn("%s", failure_line(&failure, line, sizeof(line)));
}

/* The source is about to say that the tree was moved, and has to know better. */
static void tell_end(struct reception *reception, protobuf_c_boolean *ret_has, int32_t *ret_status)
{
	char text[120];
	int status;

	*ret_has = root_has_ended(reception->root_pid, reception->journal.start_time, &status);
	if (!*ret_has)
		return;
	*ret_status = status;
	snprintf(text, sizeof(text), "process %d has ended here before all of it was moved", reception->root_pid);
	note(reception, text);
}

/* ---- rounds ---- */

static int start_cradle(struct reception *reception)
{
	struct session *session = &reception->session;

	reception->restore = (struct restore_options){
		.pid = reception->root_pid,
		.images_dirfd = reception->images_dirfd,
		.work_dirfd = reception->images_dirfd,
		.tcp_established = true,
	};
	reception->cradle_options = (struct cradle_options){
		.root_pid = reception->root_pid,
		.streams = session->data,
		.stream_count = session->data_count,
		.restore = &reception->restore,
		.session = session->join_id,
	};
	int error = cradle_start(&reception->failure, &reception->cradle_options, &reception->cradle);
	if (error < 0)
		return error;
	/* They are the cradle's: a link that breaks must be seen to break. */
	for (size_t i = 0; i < session->data_count; i++)
		stream_forget(&session->data[i]);
	session->data_count = 0;
	write_journal(reception, JOURNAL_COPYING);
	return 0;
}

static bool is_preloadable(const MigrateMapping *mapping)
{
	return (mapping->flags & MAP_ANONYMOUS) && (mapping->flags & MAP_PRIVATE) && !(mapping->flags & MAP_GROWSDOWN);
}

static int take_tree(struct reception *reception, const MigrateTree *tree)
{
	const MigrateTask *root = tree->n_tasks ? tree->tasks[0] : NULL;
	size_t count = 0;

	if (!root || (reception->cradle && root->pid != reception->root_pid))
		return fail(&reception->failure, EPROTO, "protocol-message", "source", NULL,
			    "it names no root of the tree, or another one than before");
	reception->root_pid = root->pid;
	int error = reception->cradle ? 0 : start_cradle(reception);
	if (error < 0)
		return error;
	_cleanup_free_ struct cradle_mapping *mappings = xcalloc(root->n_mappings + 1, sizeof(*mappings));
	for (size_t i = 0; i < root->n_mappings; i++) {
		const MigrateMapping *mapping = root->mappings[i];
		if (is_preloadable(mapping))
			mappings[count++] = (struct cradle_mapping){
				.range = {mapping->start, mapping->start + mapping->bytes,
					  mapping->flags | (mapping->huge ? PRELOAD_HUGE : 0)},
				/* What cannot be written to is not charged, however large it is. */
				.keep_only = !(mapping->protection & PROT_WRITE),
			};
	}
	error = cradle_map(reception->cradle, &reception->failure, mappings, count);
	/* Pages may come. */
	MigrateProgress progress = MIGRATE_PROGRESS__INIT;
	return error ? error
		     : protocol_send(&reception->session.protocol, MESSAGE_PROGRESS, &progress, &reception->failure);
}

static int end_round(struct reception *reception, const RoundEnd *end)
{
	struct page_receiver_statistics now;
	RoundAck ack = ROUND_ACK__INIT;
	int error = cradle_count(reception->cradle, &reception->failure, &now);

	if (error < 0)
		return error;
	ack.round = end->round;
	ack.pages = now.pages - reception->counted.pages;
	ack.zero_pages = now.zero_pages - reception->counted.zero_pages;
	ack.dropped_pages = now.dropped_pages - reception->counted.dropped_pages;
	if (ack.pages != end->pages || ack.zero_pages != end->zero_pages || ack.dropped_pages != end->dropped_pages)
		return fail(&reception->failure, EPROTO, "pages-lost", NULL, NULL,
			    "%lu pages, %lu of zeros and %lu dropped were sent, %lu, %lu and %lu have arrived",
			    end->pages, end->zero_pages, end->dropped_pages, ack.pages, ack.zero_pages,
			    ack.dropped_pages);
	reception->counted = now;
	if (reception->options->report && reception->options->report->bytes)
		reception->options->report->bytes(reception->options->report->context, now.raw_bytes);
	return protocol_send(&reception->session.protocol, MESSAGE_ROUND_ACK, &ack, &reception->failure);
}

/* ---- images ---- */

static int take_image(struct reception *reception, const ImageChunk *chunk)
{
	enum image_kind kind;

	if (reception->image_fd < 0) {
		/* A name that an image has, and no other: no directories, nothing hidden. */
		if (image_kind_of_name(chunk->name, &kind) < 0 || strchr(chunk->name, '/') || chunk->offset ||
		    reception->images == MAX_IMAGES)
			return fail(&reception->failure, EPROTO, "protocol-message", "source", NULL,
				    "it sends a file that is no image");
		reception->image_fd =
			openat(reception->images_dirfd, chunk->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (reception->image_fd < 0)
			return fail_errno(&reception->failure, errno, "image-create", chunk->name, NULL,
					  "cannot keep the image");
		snprintf(reception->image_name, sizeof(reception->image_name), "%s", chunk->name);
		reception->image_offset = 0;
	} else if (strcmp(reception->image_name, chunk->name) || chunk->offset != reception->image_offset) {
		/* A hole would be read as memory full of zeros. */
		return fail(&reception->failure, EPROTO, "protocol-message", "source", NULL,
			    "images are mixed up in each other, or parts of one are missing");
	}
	int error = pwrite_full(reception->image_fd, chunk->data.data, chunk->data.len, chunk->offset);
	if (error < 0)
		return fail_errno(&reception->failure, error, "image-write", chunk->name, "free memory on this machine",
				  "cannot keep the image");
	reception->image_bytes += chunk->data.len;
	reception->image_offset += chunk->data.len;
	if (chunk->last) {
		reception->images++;
		close(reception->image_fd);
		reception->image_fd = -1;
	}
	return 0;
}

/* ---- post-copy ---- */

/* Whether memory is still at the source. */
static bool is_missing(const struct reception *reception)
{
	return reception->fetch_dirfd >= 0 && !reception->complete;
}

static void end_fetch(struct reception *reception, struct failure *failure)
{
	if (reception->fetch)
		fetch_end(TAKE_POINTER(reception->fetch), failure);
	for (size_t i = 0; i < reception->demand_count; i++)
		stream_close(&reception->demand[i]);
	reception->demand_count = 0;
}

/* The source's connections are there: whatever is missing can be asked for. */
static int start_fetch(struct reception *reception, const PostCopyStart *start)
{
	if (reception->fetch || start->connections != reception->demand_count)
		return fail(&reception->failure, EPROTO, "protocol-message", "source", NULL,
			    "it lets memory follow over %u connections, of which %zu are here", start->connections,
			    reception->demand_count);
	int error = reception->fetch_dirfd >= 0 ? 0
						: fetch_directory_open(reception->session.join_id, true,
								       &reception->failure, &reception->fetch_dirfd);
	return error ? error
		     : fetch_start(reception->fetch_dirfd, reception->demand, reception->demand_count,
				   reception->tree_runs, &reception->failure, &reception->fetch);
}

/*
 * Further connections come at any time. Whose they are is checked; one that is not expected is the end. A stranger's is
 * not: who waits for another one instead would let anybody who knows the session's id hold the migration up.
 */
static int take_connection(struct reception *reception)
{
	struct session *session = &reception->session;
	struct stream *stream = NULL;
	enum connection_role role;
	uint32_t index;
	int error = session_accept_connection(session, SESSION_SETUP_TIMEOUT_MS, &reception->failure, &role, &index,
					      &stream);

	if (error < 0 || !stream)
		return error;
	if (role != CONNECTION_DEMAND || reception->fetch || reception->demand_count == ARRAY_SIZE(reception->demand)) {
		stream_close(&stream);
		return fail(&reception->failure, EPROTO, "protocol-message", session->peer_host, NULL,
			    "a connection came that was not to come");
	}
	reception->demand[reception->demand_count++] = stream;
	return 0;
}

/* The thread has ended: everything is there, or its link is lost and another one is needed. */
static int take_fetch_end(struct reception *reception)
{
	PostCopyDone done = POST_COPY_DONE__INIT;
	int error = fetch_end(TAKE_POINTER(reception->fetch), &reception->failure);

	if (error < 0)
		return error;
	reception->complete = true;
	tell_end(reception, &done.has_ended, &done.ended);
	return protocol_send(&reception->session.protocol, MESSAGE_POST_COPY_DONE, &done, &reception->failure);
}

/*
 * The tree runs here, and the link to its memory is lost: it waits where it misses some, and so does this process, for
 * the source to come back. Returns 0 or a failure.
 */
static int wait_for_memory(struct reception *reception)
{
	SessionStatus status = SESSION_STATUS__INIT;
	enum migrate_state peer_state;
	struct failure ignored = {};
	char line[1024], text[1200];

	/* The source need not have seen it: it may be one connection of several. */
	if (reception->session.control)
		stream_shutdown(reception->session.control);
	end_fetch(reception, &ignored);
	snprintf(text, sizeof(text),
		 "%s; the tree waits for memory that is still at the source: repeat `criu migrate` there",
		 failure_line(&reception->failure, line, sizeof(line)));
	note(reception, text);
	failure_clear(&reception->failure);
	int error = session_await_return(&reception->session, -1, &reception->failure, &peer_state);
	if (error < 0)
		return error;
	status.state = MIGRATE_RUNNING;
	status.tree_runs = true;
	status.missing_pages = is_missing(reception);
	/* If this is lost too, the next message will not come. */
	protocol_send(&reception->session.protocol, MESSAGE_SESSION_STATUS, &status, &reception->failure);
	failure_clear(&reception->failure);
	return 0;
}

/* ---- addresses ---- */

/* Whoever comes after a criu that was killed knows by the journal what to take back. */
static int take_addresses(struct reception *reception)
{
	int error = arriving_addresses_find(&reception->addresses, &reception->failure, &reception->journal);

	if (!error && reception->journal.addresses[0])
		write_journal(reception, JOURNAL_COPYING);
	return error ? error : arriving_addresses_take(&reception->addresses, &reception->failure);
}

static void open_addresses(struct reception *reception)
{
	struct failure failure = {};
	char line[512];

	if (arriving_addresses_open(&reception->addresses, &failure) < 0)
		note(reception, failure_line(&failure, line, sizeof(line)));
}

/* ---- the end ---- */

/* The tree stands at the source, which gives up a destination that is silent for too long. */
static void tell_that_it_takes(void *context)
{
	struct reception *reception = context;
	MigrateProgress progress = MIGRATE_PROGRESS__INIT;
	struct failure ignored = {};

	protocol_send(&reception->session.protocol, MESSAGE_PROGRESS, &progress, &ignored);
}

/* A restore whose memory does not come knows no more than that. */
static void tell_lost_memory(struct reception *reception)
{
	struct failure cause = {};

	if (strcmp(reception->failure.code, CRADLE_NO_MEMORY) != 0)
		return;
	end_fetch(reception, &cause);
	if (failure_is_set(&cause))
		reception->failure = cause;
}

static int build(struct reception *reception, const ImagesEnd *end)
{
	MigrateReady ready = MIGRATE_READY__INIT;

	if (reception->image_fd >= 0 || end->files != reception->images || end->bytes != reception->image_bytes)
		return fail(&reception->failure, EPROTO, "images-lost", NULL, NULL,
			    "%u images with %lu bytes were sent, %u with %lu have arrived", end->files, end->bytes,
			    reception->images, reception->image_bytes);
	reception->images_ns = clock_now_ns();
	reach(reception, "restoring");
	int error = take_addresses(reception);
	if (!error && reception->fetch)
		error = fetch_keep_pagemaps(reception->fetch_dirfd, reception->images_dirfd, &reception->failure);
	if (!error)
		error = cradle_restore(reception->cradle, reception->fetch ? fetch_failed_fd(reception->fetch) : -1,
				       tell_that_it_takes, reception, &reception->failure);
	if (error < 0)
		tell_lost_memory(reception);
	reach(reception, "built");
	/* From now on nobody but the source, or a person, can tell whether this copy is the one that lives. */
	if (error < 0)
		return error;
	write_journal(reception, JOURNAL_DECIDING);
	reception->ready_ns = clock_now_ns();
	ready.restore_ns = reception->ready_ns - reception->images_ns;
	return protocol_send(&reception->session.protocol, MESSAGE_READY, &ready, &reception->failure);
}

static int resume(struct reception *reception)
{
	uint64_t begin = clock_now_ns();
	MigrateRunning running = MIGRATE_RUNNING__INIT;

	reach(reception, "committed");
	open_addresses(reception);
	int error = cradle_resume(reception->cradle, &reception->failure);
	if (error < 0)
		return error;
	reception->tree_runs = true;
	bool had_addresses = reception->journal.addresses[0];
	/* They are the tree's now, and stay when it ends. */
	reception->journal.addresses[0] = '\0';
	if (reception->fetch_dirfd >= 0 || had_addresses)
		write_journal(reception, reception->fetch_dirfd >= 0 ? JOURNAL_FETCHING : JOURNAL_DECIDING);
	running.resume_ns = clock_now_ns() - begin;
	running.pid = reception->root_pid;
	reach(reception, "running");
	tell_end(reception, &running.has_ended, &running.ended);
	const struct receive_report *report = reception->options->report;
	if (report && report->running && !running.has_ended)
		report->running(report->context, reception->root_pid, reception->ready_ns - reception->images_ns);
	int sent = protocol_send(&reception->session.protocol, MESSAGE_RUNNING, &running, &reception->failure);
	if (reception->fetch_dirfd >= 0)
		reach(reception, "following");
	return sent;
}

static int answer_preflight(struct reception *reception, const PreflightRequest *request)
{
	int error = arriving_addresses_parse(&reception->addresses, request->moved_addresses,
					     request->n_moved_addresses, &reception->failure);

	if (error < 0)
		return error;
	return preflight_server_answer(reception->preflight, &reception->session.protocol, request,
				       &reception->failure);
}

/* One message of the source. Returns 0 or a failure. */
static int handle(struct reception *reception, const struct message *message)
{
	switch (message->type) {
	case MESSAGE_PREFLIGHT_REQUEST:
		reach(reception, "preflight");
		return answer_preflight(reception, (const PreflightRequest *)message->body);
	case MESSAGE_FILE_DATA:
		return preflight_server_take_file(reception->preflight, (const FileData *)message->body,
						  &reception->failure);
	case MESSAGE_TREE:
		reach(reception, "rounds");
		return take_tree(reception, (const MigrateTree *)message->body);
	case MESSAGE_ROUND_BEGIN:
		reach(reception, ((const RoundBegin *)message->body)->last ? "last-round" : "round");
		return 0;
	case MESSAGE_ROUND_END:
		return end_round(reception, (const RoundEnd *)message->body);
	case MESSAGE_POST_COPY_START:
		return start_fetch(reception, (const PostCopyStart *)message->body);
	case MESSAGE_IMAGE_CHUNK:
		return take_image(reception, (const ImageChunk *)message->body);
	case MESSAGE_IMAGES_END:
		return build(reception, (const ImagesEnd *)message->body);
	case MESSAGE_COMMIT:
		return resume(reception);
	case MESSAGE_RELEASED:
		if (is_missing(reception))
			return fail(&reception->failure, EPROTO, "protocol-message", "source", NULL,
				    "it says that it has ended its copy, of which memory is missing here");
		reception->finished = true;
		return 0;
	case MESSAGE_ABORT:
		return protocol_take_abort((const MigrateAbort *)message->body, "source", &reception->failure);
	default:
		return fail(&reception->failure, EPROTO, "protocol-state", NULL, NULL, "%s cannot be handled here",
			    message_name(message->type));
	}
}

/* Nothing came on any connection: what is here of the tree costs memory. After READY only the source may give it up. */
static int check_silence(struct reception *reception)
{
	struct page_receiver_statistics now = reception->heard;
	int error = reception->cradle ? cradle_count(reception->cradle, &reception->failure, &now) : 0;

	if (error < 0)
		return error;
	if (!memcmp(&now, &reception->heard, sizeof(now)))
		return fail(&reception->failure, ETIMEDOUT, "link-timeout", reception->session.peer_host,
			    "`criu receive --link-timeout SECONDS` waits longer",
			    "the source has sent nothing for %u s, and its tree is not complete here",
			    reception->options->silence_seconds);
	reception->heard = now;
	return 0;
}

/*
 * Waits for a message of the source; takes further connections in meanwhile, and sees at once when the cradle has
 * failed or memory has come to its end.
 */
static int wait_for_source(struct reception *reception)
{
	enum { CONTROL, CRADLE, DOOR, FETCH, WAITS };
	struct stream *control = reception->session.control;
	bool limited = reception->session.protocol.state < MIGRATE_READY;
	int error = 0, silence_ms = limited ? (int)reception->options->silence_seconds * 1000 : -1;

	/* Also the rest of a message of which only the beginning has come. */
	stream_set_timeout(control, silence_ms);
	while (!stream_pending(control) && !error) {
		struct pollfd ready[WAITS] = {
			[CONTROL] = {stream_fd(control), POLLIN, 0},
			[CRADLE] = {reception->cradle && !reception->tree_runs ? cradle_fd(reception->cradle) : -1,
				    POLLIN, 0},
			[DOOR] = {reception->session.dry_run ? -1 : reception->session.door_fd, POLLIN, 0},
			[FETCH] = {reception->fetch ? fetch_fd(reception->fetch) : -1, POLLIN, 0},
		};
		int count = poll(ready, WAITS, silence_ms);
		if (count < 0 && errno != EINTR)
			return fail_errno(&reception->failure, errno, "poll", NULL, NULL, "poll");
		if (!count) {
			error = check_silence(reception);
			continue;
		}
		if (ready[CRADLE].revents) {
			struct page_receiver_statistics ignored;
			return cradle_count(reception->cradle, &reception->failure, &ignored);
		}
		/* The end of a link comes before a source that comes back because of it. */
		if (ready[FETCH].revents)
			error = take_fetch_end(reception);
		else if (ready[CONTROL].revents)
			break;
		else if (ready[DOOR].revents)
			error = take_connection(reception);
	}
	return error;
}

/* A person has decided for this side. There is no source to tell, so it is a failure in any case; tree_runs says more.
 */
static int resume_by_hand(struct reception *reception)
{
	failure_clear(&reception->failure);
	resume(reception);
	/* What it could not say to the source is no matter. */
	if (reception->tree_runs)
		failure_clear(&reception->failure);
	return fail(&reception->failure, ECONNRESET, "link-lost", "source", NULL, "the connection is lost");
}

/*
 * The link broke when nobody here can know who is to run the tree: it is kept, stopped, until the source comes back, or
 * a person decides with `criu migrate --resume` (SIGUSR1) or `--abort` (SIGTERM).
 * Returns 0 when there is a source again, or a failure: the tree is to end, or runs (tree_runs) without a source.
 */
static int wait_for_decision(struct reception *reception)
{
	struct signalfd_siginfo signal_info = {};
	enum migrate_state peer_state;
	sigset_t decisions;

	sigemptyset(&decisions);
	sigaddset(&decisions, SIGUSR1);
	sigaddset(&decisions, SIGTERM);
	sigaddset(&decisions, SIGINT);
	sigprocmask(SIG_BLOCK, &decisions, NULL);
	_cleanup_fd_ int signal_fd = signalfd(-1, &decisions, SFD_CLOEXEC);
	/* The source need not have seen it: it may be one connection of several. */
	stream_shutdown(reception->session.control);
	note(reception, "the link broke while both sides hold the tree, stopped: waiting for the source; "
			"`criu migrate --resume` or `--abort` decides here");
	for (;;) {
		struct pollfd ready[] = {{signal_fd, POLLIN}, {reception->session.door_fd, POLLIN}};
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			return fail_errno(&reception->failure, errno, "poll", NULL, NULL, "poll");
		if (ready[0].revents) {
			read_full(signal_fd, &signal_info, sizeof(signal_info));
			if (signal_info.ssi_signo == SIGUSR1)
				return resume_by_hand(reception);
			return fail(&reception->failure, ECANCELED, "cancelled", NULL, NULL,
				    "the migration was given up by hand");
		}
		if (!ready[1].revents)
			continue;
		failure_clear(&reception->failure);
		if (session_await_return(&reception->session, 0, &reception->failure, &peer_state) < 0)
			continue;
		/* What brought memory has lost its link too, and gets a new one when the tree runs. */
		struct failure ignored = {};
		end_fetch(reception, &ignored);
		SessionStatus status = SESSION_STATUS__INIT;
		status.state = MIGRATE_READY;
		status.missing_pages = is_missing(reception);
		if (!protocol_send(&reception->session.protocol, MESSAGE_SESSION_STATUS, &status, &reception->failure))
			return 0;
	}
}

/* The tree runs here, and the source may not know: it is told when it asks. */
static void tell_that_it_runs(struct reception *reception)
{
	struct failure ignored = {};
	enum migrate_state peer_state;
	SessionStatus status = SESSION_STATUS__INIT;

	if (session_await_return(&reception->session, RETURN_TIMEOUT_MS, &ignored, &peer_state) < 0)
		return;
	status.state = MIGRATE_RUNNING;
	status.tree_runs = true;
	tell_end(reception, &status.has_ended, &status.ended);
	protocol_send(&reception->session.protocol, MESSAGE_SESSION_STATUS, &status, &ignored);
}

static int serve(struct reception *reception)
{
	struct protocol *protocol = &reception->session.protocol;

	while (!reception->finished) {
		struct message message;
		int error = wait_for_source(reception);
		if (!error)
			error = protocol_receive(protocol, &reception->failure, &message);
		if (!error) {
			error = handle(reception, &message);
			message_free(&message);
		}
		if (error < 0 && !reception->tree_runs && protocol->state == MIGRATE_READY &&
		    stream_is_lost(&reception->failure))
			error = wait_for_decision(reception);
		if (error < 0 && reception->tree_runs && is_missing(reception)) {
			error = wait_for_memory(reception);
		} else if (error < 0 && reception->tree_runs) {
			tell_that_it_runs(reception);
			return 0;
		}
		if (error < 0)
			return error;
		if (reception->session.dry_run && protocol->state == MIGRATE_PREFLIGHT)
			reception->finished = true;
	}
	return 0;
}

/* Nothing of the tree is here, or nothing of it is missing. */
static void forget_fetch(struct reception *reception)
{
	struct failure ignored = {};

	end_fetch(reception, &ignored);
	if (reception->fetch_dirfd < 0 || (reception->tree_runs && !reception->complete))
		return;
	fetch_directory_remove(reception->session.join_id);
	close_fd_pointer(&reception->fetch_dirfd);
}

/*
 * Ends what has been built. Tasks that wait for memory would go on with zeros if nobody held it any more, so a complete
 * tree ends first; but a restore that waits for some ends only when it is let go.
 */
static void end_tree(struct reception *reception)
{
	bool complete = cradle_has_tree(reception->cradle);
	struct failure ignored = {};

	if (complete)
		cradle_end(reception->cradle);
	/* The source may let its tree run when it has read this: nothing that runs is left here. */
	protocol_send_abort(&reception->session.protocol, &reception->failure);
	end_fetch(reception, &ignored);
	if (reception->fetch_dirfd >= 0)
		fetch_abandon(reception->fetch_dirfd);
	if (!complete)
		cradle_end(reception->cradle);
}

static void end(struct reception *reception)
{
	bool goes_on = reception->tree_runs && is_missing(reception);

	if (reception->tree_runs) {
		cradle_release(reception->cradle);
	} else {
		end_tree(reception);
		arriving_addresses_give_back(&reception->addresses);
	}
	forget_fetch(reception);
	if (reception->journal_written && !goes_on)
		journal_remove(&reception->journal);
	preflight_server_free(&reception->preflight);
	close_fd_pointer(&reception->image_fd);
	close_fd_pointer(&reception->images_dirfd);
	session_close(&reception->session);
}

/* The source of a tree whose criu here has ended: the guard holds what it waits for. */
static int take_over(struct reception *reception)
{
	SessionStatus status = SESSION_STATUS__INIT;
	struct failure *failure = &reception->failure;
	const char *session = reception->session.join_id;

	int error = journal_find_session(failure, JOURNAL_DESTINATION, session, &reception->journal);
	if (!error)
		error = fetch_directory_open(session, false, failure, &reception->fetch_dirfd);
	if (error < 0)
		return error;
	reception->root_pid = reception->journal.pid;
	reception->tree_runs = true;
	write_journal(reception, JOURNAL_FETCHING);
	status.state = MIGRATE_RUNNING;
	status.tree_runs = true;
	status.missing_pages = 1;
	return protocol_send(&reception->session.protocol, MESSAGE_SESSION_STATUS, &status, failure);
}

int receive_session(const struct receive_options *options, struct session_entry *entry, struct failure *failure)
{
	struct reception reception = {.options = options, .images_dirfd = -1, .image_fd = -1, .fetch_dirfd = -1};

	/* The same tree may come once more after a criu that was killed, and with the same addresses. */
	journal_clean();
	int error = session_accept(&reception.session, entry, options->wire, &reception.failure);

	if (!error && reception.session.resume)
		error = take_over(&reception);
	if (!error)
		error = memory_directory_open(NULL, &reception.failure, &reception.images_dirfd);
	if (!error && options->report && options->report->began)
		options->report->began(options->report->context, reception.session.peer_pid,
				       reception.session.peer_comm, reception.session.peer_host);
	const pid_t own_pids[] = {getpid(), getppid()};
	const struct preflight_server_options preflight = {.own_pids = own_pids, .own_pid_count = 2};
	reception.preflight = preflight_server_new(&preflight);
	if (!error)
		error = serve(&reception);
	end(&reception);
	*failure = reception.failure;
	return error;
}
