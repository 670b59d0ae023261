/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All tasks of a restore send through one connection, of which each has the same end: it ends when the last of them
 * runs, and then no more memory can come but by forks.
 */
#include "migrate/lazy_daemon.h"

#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "migrate/lazy_guard.h"
#include "migrate/postcopy.h"
#include "model/lazy_memory.h"

struct lazy_daemon {
	struct failure *failure;
	struct postcopy *postcopy;
	int listen_fd, restore_fd; /* -1 = not any more, not yet */
};

/* Returns 0 or a failure. */
static int take_offer(struct lazy_daemon *daemon)
{
	const char taken = 1;
	struct lazy_offer offer = {};
	int fds[LAZY_OFFER_FDS];
	ssize_t got = lazy_receive(daemon->restore_fd, &offer, sizeof(offer), fds, LAZY_OFFER_FDS);

	if (got <= 0) {
		close(daemon->restore_fd);
		daemon->restore_fd = -1;
		return 0;
	}
	_cleanup_fd_ int answer_fd = fds[2];
	if (got != sizeof(offer) || offer.magic != LAZY_OFFER_MAGIC || answer_fd < 0) {
		close_fd_pointer(&fds[0]);
		close_fd_pointer(&fds[1]);
		return fail(daemon->failure, EPROTO, "lazy-offer", LAZY_SOCKET_NAME, "use the same criu for both",
			    "what connected is no `criu restore --lazy-pages`");
	}
	int error = postcopy_add(daemon->postcopy, fds[0], fds[1]);
	if (!error)
		write_full(answer_fd, &taken, sizeof(taken));
	return error;
}

static int accept_restore(struct lazy_daemon *daemon)
{
	int fd = lazy_accept(daemon->listen_fd);

	if (fd < 0) {
		log_warn("a connection was refused: %s", strerror(-fd));
		return 0;
	}
	daemon->restore_fd = fd;
	close(daemon->listen_fd);
	daemon->listen_fd = -1;
	return 0;
}

static int serve(struct lazy_daemon *daemon)
{
	int error = 0;

	while (!error && (postcopy_has_work(daemon->postcopy) || daemon->restore_fd >= 0 || daemon->listen_fd >= 0)) {
		int extra = daemon->restore_fd >= 0 ? daemon->restore_fd : daemon->listen_fd;
		bool ready = false;
		error = postcopy_step(daemon->postcopy, extra, &ready);
		if (!error && ready)
			error = daemon->restore_fd >= 0 ? take_offer(daemon) : accept_restore(daemon);
	}
	return error;
}

int lazy_daemon_run(const struct lazy_daemon_options *options, struct page_supply *supply, struct failure *failure)
{
	struct lazy_daemon daemon = {.failure = failure, .listen_fd = -1, .restore_fd = -1};
	int error = postcopy_new(supply, options->work_dirfd, failure, &daemon.postcopy);

	/* With memory of an earlier daemon the restore is over. */
	if (!error && !postcopy_has_work(daemon.postcopy)) {
		daemon.listen_fd = lazy_listen(options->work_dirfd, LAZY_SOCKET_NAME);
		if (daemon.listen_fd < 0)
			error = fail_errno(failure, daemon.listen_fd, "lazy-listen", LAZY_SOCKET_NAME,
					   "choose another --work-dir", "cannot make the socket");
	}
	if (!error) {
		options->ready(options->context);
		error = serve(&daemon);
	}
	unlinkat(options->work_dirfd, LAZY_SOCKET_NAME, 0);
	close_fd_pointer(&daemon.listen_fd);
	close_fd_pointer(&daemon.restore_fd);
	postcopy_free(daemon.postcopy);
	return error;
}
