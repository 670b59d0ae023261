/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receive.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "kernel/proc.h"
#include "migrate/address.h"
#include "migrate/cradle.h"
#include "migrate/journal.h"
#include "migrate/memory_directory.h"
#include "migrate/preflight.h"
#include "migrate/stream.h"

enum {
	MAX_ADDRESSES = 16,
	MAX_IMAGES = 1 << 20,
	/* How long a source whose link broke after it was told to go on may take to come back for the answer. */
	RETURN_TIMEOUT_MS = 60 * 1000,
};

const char *const receive_states[] = {
	"preflight", "rounds", "round", "last-round", "restoring", "built", "committed", "running", NULL,
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
	struct restore_options restore;
	struct cradle_options cradle_options;
	struct preflight_server *preflight;
	struct cradle *cradle;
	struct page_receiver_statistics counted; /* at the end of the round before */
	pid_t root_pid;
	struct moving_address addresses[MAX_ADDRESSES];
	struct address_block *blocks[MAX_ADDRESSES];
	bool address_added[MAX_ADDRESSES];
	size_t address_count;
	struct journal journal;
	bool journal_written, tree_runs, finished;
	uint64_t images_ns, ready_ns;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void reach(struct reception *reception, const char *state)
{
	log_debug("migration: %s", state);
	if (reception->options->die_at && !strcmp(reception->options->die_at, state))
		kill(getpid(), SIGKILL);
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
	char line[1024];

	journal->role = JOURNAL_DESTINATION;
	journal->state = state;
	journal->pid = reception->root_pid;
	journal->criu = getpid();
	snprintf(journal->session, sizeof(journal->session), "%s", reception->session.join_id);
	snprintf(journal->peer, sizeof(journal->peer), "%s", reception->session.peer_host);
	reception->journal_written = true;
	/* It helps after a crash; without it people have to look for themselves. */
	if (journal_write(&failure, journal) < 0)
		log_warn("%s", failure_line(&failure, line, sizeof(line)));
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
	} else if (strcmp(reception->image_name, chunk->name)) {
		return fail(&reception->failure, EPROTO, "protocol-message", "source", NULL,
			    "images are mixed up in each other");
	}
	int error = pwrite_full(reception->image_fd, chunk->data.data, chunk->data.len, chunk->offset);
	if (error < 0)
		return fail_errno(&reception->failure, error, "image-write", chunk->name, "free memory on this machine",
				  "cannot keep the image");
	reception->image_bytes += chunk->data.len;
	if (chunk->last) {
		reception->images++;
		close(reception->image_fd);
		reception->image_fd = -1;
	}
	return 0;
}

/* ---- addresses ---- */

/* First silence, then the address, then sockets: nobody is ever answered by a reset. */
static int take_addresses(struct reception *reception)
{
	for (size_t i = 0; i < reception->address_count; i++) {
		struct moving_address *address = &reception->addresses[i];
		int error = address_block(&reception->failure, address, &reception->blocks[i]);
		if (!error)
			error = address_add(&reception->failure, address);
		if (error < 0)
			return error;
		reception->address_added[i] = true;
	}
	return 0;
}

static void open_addresses(struct reception *reception)
{
	struct failure failure = {};

	for (size_t i = 0; i < reception->address_count; i++) {
		address_unblock(TAKE_POINTER(reception->blocks[i]));
		if (address_announce(&failure, &reception->addresses[i]) < 0) {
			char line[512];
			note(reception, failure_line(&failure, line, sizeof(line)));
			failure_clear(&failure);
		}
	}
}

/* When nothing of the tree is left: the last sockets have closed in silence. */
static void give_back_addresses(struct reception *reception)
{
	struct failure ignored = {};

	for (size_t i = 0; i < reception->address_count; i++) {
		if (reception->address_added[i])
			address_remove(&ignored, &reception->addresses[i]);
		address_unblock(TAKE_POINTER(reception->blocks[i]));
	}
}

/* ---- the end ---- */

static int build(struct reception *reception, const ImagesEnd *end)
{
	MigrateReady ready = MIGRATE_READY__INIT;

	if (reception->image_fd >= 0 || end->files != reception->images || end->bytes != reception->image_bytes)
		return fail(&reception->failure, EPROTO, "images-lost", NULL, NULL,
			    "%u images with %lu bytes were sent, %u with %lu have arrived", end->files, end->bytes,
			    reception->images, reception->image_bytes);
	reception->images_ns = now_ns();
	reach(reception, "restoring");
	int error = take_addresses(reception);
	if (!error)
		error = cradle_restore(reception->cradle, &reception->failure);
	reach(reception, "built");
	/* From now on nobody but the source, or a person, can tell whether this copy is the one that lives. */
	if (error < 0)
		return error;
	write_journal(reception, JOURNAL_DECIDING);
	reception->ready_ns = now_ns();
	ready.restore_ns = reception->ready_ns - reception->images_ns;
	return protocol_send(&reception->session.protocol, MESSAGE_READY, &ready, &reception->failure);
}

static int resume(struct reception *reception)
{
	uint64_t begin = now_ns();
	MigrateRunning running = MIGRATE_RUNNING__INIT;

	reach(reception, "committed");
	open_addresses(reception);
	int error = cradle_resume(reception->cradle, &reception->failure);
	if (error < 0)
		return error;
	reception->tree_runs = true;
	running.resume_ns = now_ns() - begin;
	running.pid = reception->root_pid;
	reach(reception, "running");
	const struct receive_report *report = reception->options->report;
	if (report && report->running)
		report->running(report->context, reception->root_pid, reception->ready_ns - reception->images_ns);
	return protocol_send(&reception->session.protocol, MESSAGE_RUNNING, &running, &reception->failure);
}

static int answer_preflight(struct reception *reception, const PreflightRequest *request)
{
	reception->address_count = 0;
	for (size_t i = 0; i < request->n_moved_addresses; i++) {
		if (reception->address_count == MAX_ADDRESSES)
			return fail(&reception->failure, E2BIG, "address", NULL, NULL,
				    "more than %d addresses are to move", MAX_ADDRESSES);
		int error = address_parse(&reception->failure, request->moved_addresses[i],
					  &reception->addresses[reception->address_count++]);
		if (error < 0)
			return error;
	}
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
	case MESSAGE_IMAGE_CHUNK:
		return take_image(reception, (const ImageChunk *)message->body);
	case MESSAGE_IMAGES_END:
		return build(reception, (const ImagesEnd *)message->body);
	case MESSAGE_COMMIT:
		return resume(reception);
	case MESSAGE_RELEASED:
		reception->finished = true;
		return 0;
	case MESSAGE_ABORT:
		return protocol_take_abort((const MigrateAbort *)message->body, "source", &reception->failure);
	default:
		return fail(&reception->failure, EPROTO, "protocol-state", NULL, NULL, "%s cannot be handled here",
			    message_name(message->type));
	}
}

/* Waits for the source, and sees at once when the cradle has failed. */
static int wait_for_source(struct reception *reception)
{
	struct stream *control = reception->session.control;
	struct pollfd ready[] = {{stream_fd(control), POLLIN}, {-1, POLLIN}};

	if (reception->cradle && !reception->tree_runs)
		ready[1].fd = cradle_fd(reception->cradle);
	while (!stream_pending(control)) {
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			return fail_errno(&reception->failure, errno, "poll", NULL, NULL, "poll");
		if (ready[1].revents) {
			struct page_receiver_statistics ignored;
			return cradle_count(reception->cradle, &reception->failure, &ignored);
		}
		if (ready[0].revents)
			break;
	}
	return 0;
}

/*
 * The link broke when nobody here can know who is to run the tree: it is kept, stopped, until the source comes back, or
 * a person decides with `criu migrate --resume` (SIGUSR1) or `--abort` (SIGTERM).
 * Returns 0 when there is a source again or the tree is to run, or a failure: the tree is to end.
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
	note(reception, "the link broke while both sides hold the tree, stopped: waiting for the source; "
			"`criu migrate --resume` or `--abort` decides here");
	for (;;) {
		struct pollfd ready[] = {{signal_fd, POLLIN}, {reception->session.door_fd, POLLIN}};
		if (poll(ready, 2, -1) < 0 && errno != EINTR)
			return fail_errno(&reception->failure, errno, "poll", NULL, NULL, "poll");
		if (ready[0].revents) {
			read_full(signal_fd, &signal_info, sizeof(signal_info));
			if (signal_info.ssi_signo == SIGUSR1)
				return resume(reception);
			return fail(&reception->failure, ECANCELED, "cancelled", NULL, NULL,
				    "the migration was given up by hand");
		}
		if (!ready[1].revents)
			continue;
		failure_clear(&reception->failure);
		if (session_await_return(&reception->session, 0, &reception->failure, &peer_state) < 0)
			continue;
		SessionStatus status = SESSION_STATUS__INIT;
		status.state = MIGRATE_READY;
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
	protocol_send(&reception->session.protocol, MESSAGE_SESSION_STATUS, &status, &ignored);
}

static bool is_link_failure(const struct failure *failure)
{
	return !strncmp(failure->code, "link-", 5);
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
		if (error < 0 && reception->tree_runs) {
			tell_that_it_runs(reception);
			return 0;
		}
		if (error < 0 && protocol->state == MIGRATE_READY && is_link_failure(&reception->failure))
			error = wait_for_decision(reception);
		if (error < 0)
			return error;
		if (reception->session.dry_run && protocol->state == MIGRATE_PREFLIGHT)
			reception->finished = true;
	}
	return 0;
}

static void end(struct reception *reception)
{
	if (reception->tree_runs) {
		cradle_release(reception->cradle);
	} else {
		protocol_send_abort(&reception->session.protocol, &reception->failure);
		cradle_end(reception->cradle);
		give_back_addresses(reception);
	}
	if (reception->journal_written)
		journal_remove(&reception->journal);
	preflight_server_free(&reception->preflight);
	close_fd_pointer(&reception->image_fd);
	close_fd_pointer(&reception->images_dirfd);
	session_close(&reception->session);
}

int receive_session(const struct receive_options *options, struct session_entry *entry, struct failure *failure)
{
	struct reception reception = {.options = options, .images_dirfd = -1, .image_fd = -1};
	int error = session_accept(&reception.session, entry, options->wire, &reception.failure);

	if (!error)
		error = memory_directory_open(&reception.failure, &reception.images_dirfd);
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
