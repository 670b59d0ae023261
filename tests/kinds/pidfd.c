/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors for processes: a child, oneself, a zombie, and one that is gone.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int open_pidfd(pid_t pid, unsigned int flags)
{
	return MUST(syscall(SYS_pidfd_open, pid, flags));
}

static int send_nothing(int fd)
{
	return syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0);
}

static void check_nothing(void *argument)
{
}

static pid_t fork_exiting(void)
{
	pid_t pid = MUST(fork());

	if (!pid)
		_exit(7);
	return pid;
}

int main(void)
{
	pid_t child = harness_start_child(check_nothing, NULL);
	int live = open_pidfd(child, O_NONBLOCK), self = open_pidfd(getpid(), 0);
	pid_t zombie = fork_exiting(), gone = fork_exiting();
	int of_zombie = open_pidfd(zombie, 0), of_gone = open_pidfd(gone, 0);
	siginfo_t info = {};

	MUST(waitpid(gone, NULL, 0));
	MUST(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT));
	harness_ready();
	while (harness_wait_check()) {
		struct pollfd state = {.fd = live, .events = POLLIN};
		CHECK(poll(&state, 1, 0) == 0, "the child has ended?");
		CHECK(send_nothing(live) == 0, "%m");
		CHECK(waitid(P_PIDFD, live, &info, WEXITED | WNOHANG) == -1 ? errno == EAGAIN : info.si_pid == 0, "%m");
		CHECK(fcntl(live, F_GETFL) & O_NONBLOCK);
		CHECK(fcntl(live, F_GETFD) == FD_CLOEXEC);
		CHECK(send_nothing(self) == 0, "%m");
		CHECK(poll(&(struct pollfd){.fd = self, .events = POLLIN}, 1, 0) == 0);
		CHECK(waitid(P_PIDFD, of_zombie, &info, WEXITED | WNOWAIT) == 0 && info.si_pid == zombie &&
			      info.si_status == 7,
		      "pid %d status %d", info.si_pid, info.si_status);
		CHECK(poll(&(struct pollfd){.fd = of_gone, .events = POLLIN}, 1, 0) == 1);
		CHECK(send_nothing(of_gone) == -1 && errno == ESRCH);
		harness_check_children();
		harness_report();
	}
	return 0;
}
