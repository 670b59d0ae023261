/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/cradle.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"
#include "migrate/fetch.h"
#include "migrate/page_stores.h"
#include "migrate/stream.h"
#include "restore/restore.h"
#include "restore/tree.h"

/* ---- the words between `criu receive` and the cradle ---- */

enum cradle_word {
	CRADLE_MAP = 1, /* count mappings follow, in one stream of bytes */
	CRADLE_COUNT,
	CRADLE_RESTORE, /* count: whether memory follows */
	CRADLE_RESUME,
};

struct cradle_order {
	enum cradle_word word;
	uint32_t count;
};

/* The answer to every order. */
struct cradle_answer {
	struct failure failure; /* error 0 = done */
	struct page_receiver_statistics statistics;
	pid_t from;
};

/* Whoever is told may be dead: that is an error, not a SIGPIPE. */
static int tell(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
		if (count < 0 && errno != EINTR)
			return -errno;
		done += count > 0 ? count : 0;
	}
	return 0;
}

/* ---- in the cradle ---- */

enum { LOOK_AT_MEMORY_BYTES = 32 << 20 };

struct nursery {
	const struct cradle_options *options;
	int socket_fd;
	struct preload preload;
	pthread_rwlock_t preload_lock;
	struct page_stores *stores;
	struct page_receiver *receiver;
	_Atomic uint64_t placed_bytes; /* since the memory that is left was looked at */
};

static void answer(const struct nursery *nursery, const struct failure *failure)
{
	struct cradle_answer message = {.from = getpid()};

	if (failure)
		message.failure = *failure;
	if (nursery->receiver)
		page_receiver_statistics(nursery->receiver, &message.statistics);
	if (tell(nursery->socket_fd, &message, sizeof(message)) < 0)
		_exit(1); /* nobody is left to whom it matters */
}

static void __attribute__((noreturn)) give_up(const struct nursery *nursery, const struct failure *failure)
{
	answer(nursery, failure);
	_exit(1);
}

/* Into memory that the CPU has in its caches; from there it goes where it stays. */
static int place(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint32_t pages,
		 struct failure *failure, void **ret_memory)
{
	struct nursery *nursery = context;

	return page_stores_buffer(nursery->stores, failure, ret_memory);
}

/*
 * Called before so many bytes take memory. A tree that has grown since the preflight, or a source that lies, must end
 * the migration, and not whatever else lives on this machine.
 */
static int check_memory(struct nursery *nursery, uint64_t bytes, struct failure *failure)
{
	enum { MEMORY_LEFT_BYTES = 64 << 20 };

	if (atomic_fetch_add(&nursery->placed_bytes, bytes) + bytes < LOOK_AT_MEMORY_BYTES)
		return 0;
	atomic_store(&nursery->placed_bytes, 0);
	return proc_free_memory_bytes() >= MEMORY_LEFT_BYTES
		       ? 0
		       : fail(failure, ENOMEM, "memory-short", "memory", "free some there",
			      "the destination has no memory left for the tree");
}

/*
 * Calls for each part of a range whether it is in place, which is for pages of the root where criu itself does not lie,
 * or belongs into the store.
 */
static int for_parts(struct nursery *nursery, uint32_t space_kind, uint32_t space_id, uint64_t address, uint64_t bytes,
		     int (*in_place)(struct preload *preload, uint64_t address, uint64_t bytes, const void *data),
		     int (*stored)(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t address,
				   uint64_t bytes, const void *data, struct failure *failure),
		     const char *data, struct failure *failure)
{
	bool root = space_kind == SPACE_PROCESS && space_id == (uint32_t)nursery->options->root_pid;
	int error = 0;

	pthread_rwlock_rdlock(&nursery->preload_lock);
	for (uint64_t done = 0, part; done < bytes && !error; done += part) {
		const char *from = data ? data + done : NULL;
		part = root ? preload_find(&nursery->preload, address + done, bytes - done) : 0;
		if (part) {
			error = in_place(&nursery->preload, address + done, part, from);
			if (error < 0)
				error = fail_errno(failure, error, "page-place", NULL, NULL, "cannot change memory");
			continue;
		}
		part = root ? preload_gap(&nursery->preload, address + done, bytes - done) : bytes - done;
		error = stored(nursery->stores, space_kind, space_id, address + done, part, from, failure);
	}
	pthread_rwlock_unlock(&nursery->preload_lock);
	return error;
}

/* Without data it holds zeros: it exists in the source, so it exists here; a hole in a huge page would split it. */
static int fill_in_place(struct preload *preload, uint64_t address, uint64_t bytes, const void *data)
{
	return preload_fill(preload, address, data, bytes);
}

static int drop_in_place(struct preload *preload, uint64_t address, uint64_t bytes, const void *data)
{
	return madvise((void *)address, bytes, MADV_DONTNEED) < 0 ? -errno : 0;
}

static int done(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint32_t pages, void *memory,
		struct failure *failure)
{
	struct nursery *nursery = context;
	uint64_t bytes = (uint64_t)pages * FRAME_PAGE_BYTES;
	int error = check_memory(nursery, bytes, failure);

	if (!error)
		error = for_parts(nursery, space_kind, space_id, address, bytes, fill_in_place, page_stores_write,
				  memory, failure);

	page_stores_return(nursery->stores, memory);
	return error;
}

static int zero(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint64_t pages,
		struct failure *failure)
{
	uint64_t bytes = pages * FRAME_PAGE_BYTES;
	int error = 0;

	for (uint64_t done = 0, part; done < bytes && !error; done += part) {
		part = bytes - done < LOOK_AT_MEMORY_BYTES ? bytes - done : LOOK_AT_MEMORY_BYTES;
		error = check_memory(context, part, failure);
		if (!error)
			error = for_parts(context, space_kind, space_id, address + done, part, fill_in_place,
					  page_stores_drop, NULL, failure);
	}
	return error;
}

static int drop(void *context, uint32_t space_kind, uint32_t space_id, uint64_t address, uint64_t pages,
		struct failure *failure)
{
	return for_parts(context, space_kind, space_id, address, pages * FRAME_PAGE_BYTES, drop_in_place,
			 page_stores_drop, NULL, failure);
}

static const struct page_receiver_operations receiver_operations = {
	.place = place,
	.done = done,
	.zero = zero,
	.drop = drop,
};

/*
 * Pages that came before their mapping could be there lie in the store, and only the source knows that it need not send
 * them again: such a mapping stays with the store.
 */
static int map_one(struct nursery *nursery, const struct cradle_mapping *mapping)
{
	const struct preload_range *range = &mapping->range;

	if (mapping->keep_only ||
	    page_stores_has_data(nursery->stores, SPACE_PROCESS, nursery->options->root_pid, range->start, range->end))
		return 0;
	return preload_map(&nursery->preload, range->start, range->end, range->flags);
}

static void map_all(struct nursery *nursery, uint32_t count)
{
	_cleanup_free_ struct cradle_mapping *mappings = xcalloc(count + 1, sizeof(*mappings));
	struct failure failure = {};
	uint64_t covered = 0;

	if (read_full(nursery->socket_fd, mappings, count * sizeof(*mappings)) < 0)
		_exit(1);
	/* Nothing is unmapped that a thread writes to, whatever the source sends. */
	pthread_rwlock_wrlock(&nursery->preload_lock);
	for (uint32_t i = 0; i < count; i++) {
		const struct preload_range *range = &mappings[i].range;
		if (range->start > covered)
			preload_unmap(&nursery->preload, covered, range->start);
		int error = map_one(nursery, &mappings[i]);
		if (error < 0) {
			fail_errno(&failure, error, "cradle-map", NULL,
				   error == -ENOMEM ? "there is too little memory here" : NULL,
				   "cannot map %lu bytes for the memory that will come", range->end - range->start);
			give_up(nursery, &failure);
		}
		covered = range->end;
	}
	preload_unmap(&nursery->preload, covered, UINT64_MAX);
	pthread_rwlock_unlock(&nursery->preload_lock);
	answer(nursery, NULL);
}

/* The receiver's threads end before anything is forked. */
static void end_receiving(struct nursery *nursery)
{
	struct failure failure = {};

	if (page_receiver_failure(nursery->receiver, &failure) < 0)
		give_up(nursery, &failure);
	page_receiver_free(&nursery->receiver);
}

/* In the new criu: the tree is complete and stands. Whoever waits decides. */
static int wait_for_word(void *context, struct failure *failure)
{
	struct nursery *nursery = context;
	struct cradle_order order;

	answer(nursery, NULL);
	if (read_full(nursery->socket_fd, &order, sizeof(order)) < 0 || order.word != CRADLE_RESUME)
		return fail(failure, ECANCELED, "cancelled", NULL, NULL, "the migration was given up");
	return 0;
}

static void __attribute__((noreturn)) restore(struct nursery *nursery, bool post_copy)
{
	struct restore_options options = *nursery->options->restore;
	struct failure failure = {};
	int status;

	end_receiving(nursery);
	preload_settle(&nursery->preload);
	options.preload = &nursery->preload;
	options.stores = page_stores_list(nursery->stores, &options.store_count);
	options.before_resume = wait_for_word;
	options.context = nursery;
	options.detached = true;
	options.lazy_pages = post_copy;
	if (post_copy && fetch_directory_open(nursery->options->session, false, &failure, &options.work_dirfd) < 0)
		give_up(nursery, &failure);
	int error = restore_run(&options, &failure, &status);
	answer(nursery, error < 0 ? &failure : NULL);
	_exit(error < 0);
}

/* Waits for an order; a failure of the receiver is told at once, before the other side can tell its own version. */
static bool next_order(const struct nursery *nursery, struct cradle_order *ret_order)
{
	struct pollfd ready[] = {{nursery->socket_fd, POLLIN, 0}, {page_receiver_fd(nursery->receiver), POLLIN, 0}};
	struct failure failure = {};

	while (poll(ready, ARRAY_SIZE(ready), -1) < 0 && errno == EINTR)
		;
	/* Without a failure the source has closed a connection, as it does at the end. */
	if (page_receiver_failure(nursery->receiver, &failure) < 0)
		give_up(nursery, &failure);
	return !read_full(nursery->socket_fd, ret_order, sizeof(*ret_order));
}

static void __attribute__((noreturn)) live(const struct cradle_options *options, int socket_fd)
{
	struct nursery nursery = {
		.options = options, .socket_fd = socket_fd, .preload_lock = PTHREAD_RWLOCK_INITIALIZER};
	struct failure failure = {};
	struct cradle_order order;

	log_set_pid(options->root_pid);
	preload_begin(&nursery.preload);
	int error = page_stores_new(&failure, &nursery.stores);
	if (!error)
		error = page_receiver_new(options->streams, options->stream_count, &receiver_operations, &nursery,
					  &failure, &nursery.receiver);
	if (error < 0)
		give_up(&nursery, &failure);
	answer(&nursery, NULL);
	while (next_order(&nursery, &order)) {
		switch (order.word) {
		case CRADLE_MAP:
			map_all(&nursery, order.count);
			break;
		case CRADLE_COUNT:
			answer(&nursery, NULL);
			break;
		case CRADLE_RESTORE:
			restore(&nursery, order.count);
		default:
			_exit(1);
		}
	}
	_exit(1);
}

/* ---- in `criu receive` ---- */

/* How often a restore that takes long is told of. */
enum { TELL_MS = 5000 };

struct cradle {
	pid_t pid;
	int socket_fd;
	bool has_tree; /* the root exists and is complete */
	pid_t criu;    /* that has built the tree, and lets it run; 0 = it has not yet */
};

static int fail_gone(struct failure *failure)
{
	return fail(failure, EPIPE, "cradle-died", NULL, "look into the log of criu receive",
		    "the process that receives the memory has ended");
}

static int wait_answer(struct cradle *cradle, struct failure *failure, struct cradle_answer *ret_answer)
{
	if (read_full(cradle->socket_fd, ret_answer, sizeof(*ret_answer)) < 0)
		return fail_gone(failure);
	if (failure_is_set(&ret_answer->failure)) {
		*failure = ret_answer->failure;
		return -failure->error;
	}
	return 0;
}

static int ask(struct cradle *cradle, struct failure *failure, enum cradle_word word, const void *data, uint32_t count,
	       size_t bytes, struct cradle_answer *ret_answer)
{
	const struct cradle_order order = {word, count};

	/* What it says without being asked is its failure, and is read as the answer. */
	if (tell(cradle->socket_fd, &order, sizeof(order)) == 0 && bytes)
		tell(cradle->socket_fd, data, bytes);
	return wait_answer(cradle, failure, ret_answer);
}

int cradle_start(struct failure *failure, const struct cradle_options *options, struct cradle **ret_cradle)
{
	struct restore for_fork = {.options = options->restore};
	struct cradle_answer first;
	pid_t criu = getpid();
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return fail_errno(failure, errno, "cradle", NULL, NULL, "socketpair");
	pid_t pid = tree_fork(&for_fork, options->root_pid, 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != criu)
			_exit(1);
		close(pair[0]);
		live(options, pair[1]);
	}
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		*failure = for_fork.failure;
		return -failure->error;
	}
	struct cradle *cradle = xcalloc(1, sizeof(*cradle));
	cradle->pid = pid;
	cradle->socket_fd = pair[0];
	int error = wait_answer(cradle, failure, &first);
	if (error < 0) {
		cradle_end(cradle);
		return error;
	}
	*ret_cradle = cradle;
	return 0;
}

int cradle_map(struct cradle *cradle, struct failure *failure, const struct cradle_mapping *mappings, size_t count)
{
	struct cradle_answer reply;

	return ask(cradle, failure, CRADLE_MAP, mappings, count, count * sizeof(*mappings), &reply);
}

int cradle_count(struct cradle *cradle, struct failure *failure, struct page_receiver_statistics *ret_statistics)
{
	struct cradle_answer reply;
	int error = ask(cradle, failure, CRADLE_COUNT, NULL, 0, 0, &reply);

	if (!error)
		*ret_statistics = reply.statistics;
	return error;
}

/* Who misses memory waits for it, so nobody would answer. */
static int wait_unless_lost(const struct cradle *cradle, int lost_fd, void (*waits)(void *context), void *context,
			    struct failure *failure)
{
	struct pollfd ready[] = {{cradle->socket_fd, POLLIN, 0}, {lost_fd, POLLIN, 0}};
	int count;

	while ((count = poll(ready, ARRAY_SIZE(ready), TELL_MS)) == 0 || (count < 0 && errno == EINTR))
		if (!count)
			waits(context);
	return ready[0].revents || !ready[1].revents ? 0
						     : fail(failure, EPIPE, CRADLE_NO_MEMORY, NULL, NULL,
							    "memory that the restore needs does not come");
}

int cradle_restore(struct cradle *cradle, int lost_fd, void (*waits)(void *context), void *context,
		   struct failure *failure)
{
	const struct cradle_order order = {CRADLE_RESTORE, lost_fd >= 0};
	struct cradle_answer reply;

	tell(cradle->socket_fd, &order, sizeof(order));
	int error = wait_unless_lost(cradle, lost_fd, waits, context, failure);
	if (!error)
		error = wait_answer(cradle, failure, &reply);
	cradle->has_tree = !error;
	cradle->criu = error ? 0 : reply.from;
	return error;
}

int cradle_resume(struct cradle *cradle, struct failure *failure)
{
	struct cradle_answer reply;

	return ask(cradle, failure, CRADLE_RESUME, NULL, 0, 0, &reply);
}

int cradle_fd(const struct cradle *cradle)
{
	return cradle->socket_fd;
}

static void wait_for_criu(const struct cradle *cradle)
{
	while (cradle->criu && waitpid(cradle->criu, NULL, __WALL) < 0 && errno == EINTR)
		;
}

bool cradle_has_tree(const struct cradle *cradle)
{
	return cradle && cradle->has_tree;
}

/*
 * Whoever is still building: the root, and a new criu that has not said so yet. That one traces the root's threads, and
 * would wait for ever for a leader that is dead: the kernel gives it out when the other threads were waited for.
 */
static void kill_builders(const struct cradle *cradle)
{
	_cleanup_fd_ int proc_dirfd = proc_open(getpid());
	_cleanup_free_ pid_t *children = NULL;
	size_t count = 0, capacity = 0;

	kill(cradle->pid, SIGKILL);
	if (cradle->criu || proc_dirfd < 0 ||
	    proc_read_children(proc_dirfd, getpid(), &children, &count, &capacity) < 0)
		return;
	for (size_t i = 0; i < count; i++)
		kill(children[i], SIGKILL);
}

/*
 * The new criu ends its tree when the socket closes, if it has got that far. A new criu that was killed may have let
 * the root go just before.
 */
void cradle_end(struct cradle *cradle)
{
	if (!cradle)
		return;
	shutdown(cradle->socket_fd, SHUT_RDWR);
	wait_for_criu(cradle);
	kill_builders(cradle);
	while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR)
		;
	close(cradle->socket_fd);
	free(cradle);
}

void cradle_release(struct cradle *cradle)
{
	if (!cradle)
		return;
	/* Nobody is to meet it in the tree's pid namespace. */
	wait_for_criu(cradle);
	close(cradle->socket_fd);
	free(cradle);
}
