/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All tasks of a restore send through one connection, of which each has the same end: it ends when the last of them
 * runs, and then no more memory can come but by forks.
 */
#include "migrate/lazy_daemon.h"

#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/fd.h"
#include "base/log.h"
#include "migrate/lazy_guard.h"
#include "migrate/postcopy.h"
#include "model/lazy_memory.h"

struct lazy_daemon {
	struct failure *failure;
	struct postcopy *postcopy;
	int listen_fd, restore_fd; /* -1 = not any more, not yet */
	int stop_fd, wake_fd;      /* the second: readable when one of the three is */
};

/* A descriptor that is closed leaves the set by itself. */
static int wake_by(struct lazy_daemon *daemon, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return fd < 0 || epoll_ctl(daemon->wake_fd, EPOLL_CTL_ADD, fd, &event) == 0
		       ? 0
		       : fail_errno(daemon->failure, errno, "epoll", NULL, NULL, "cannot wait for the restore");
}

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
	return wake_by(daemon, fd);
}

/* What is ready besides memory. */
static int look(struct lazy_daemon *daemon)
{
	struct pollfd ready[] = {
		{daemon->stop_fd, POLLIN, 0}, {daemon->restore_fd, POLLIN, 0}, {daemon->listen_fd, POLLIN, 0}};
	int error = 0;

	if (poll(ready, ARRAY_SIZE(ready), 0) <= 0)
		return 0;
	if (ready[0].revents)
		return fail(daemon->failure, ECANCELED, "cancelled", NULL, NULL, "cancelled");
	if (ready[1].revents)
		error = take_offer(daemon);
	else if (ready[2].revents)
		error = accept_restore(daemon);
	return error;
}

static int serve(struct lazy_daemon *daemon)
{
	int error = 0;

	while (!error && (postcopy_has_work(daemon->postcopy) || daemon->restore_fd >= 0 || daemon->listen_fd >= 0)) {
		bool ready = false;
		error = postcopy_step(daemon->postcopy, daemon->wake_fd, &ready);
		if (!error && ready)
			error = look(daemon);
	}
	return error;
}

int lazy_daemon_run(const struct lazy_daemon_options *options, struct page_supply *supply, struct failure *failure)
{
	struct lazy_daemon daemon = {.failure = failure,
				     .listen_fd = -1,
				     .restore_fd = -1,
				     .stop_fd = options->stop_fd,
				     .wake_fd = epoll_create1(EPOLL_CLOEXEC)};
	int error = postcopy_new(supply, options->work_dirfd, failure, &daemon.postcopy);

	if (!error)
		error = wake_by(&daemon, daemon.stop_fd);

	/* With memory of an earlier daemon the restore is over. */
	if (!error && !options->goes_on && !postcopy_has_work(daemon.postcopy)) {
		daemon.listen_fd = lazy_listen(options->work_dirfd, LAZY_SOCKET_NAME);
		if (daemon.listen_fd < 0)
			error = fail_errno(failure, daemon.listen_fd, "lazy-listen", LAZY_SOCKET_NAME,
					   "choose another --work-dir", "cannot make the socket");
		else
			error = wake_by(&daemon, daemon.listen_fd);
	}
	if (!error) {
		options->ready(options->context);
		error = serve(&daemon);
	}
	unlinkat(options->work_dirfd, LAZY_SOCKET_NAME, 0);
	close_fd_pointer(&daemon.listen_fd);
	close_fd_pointer(&daemon.restore_fd);
	close_fd_pointer(&daemon.wake_fd);
	postcopy_free(daemon.postcopy);
	return error;
}
