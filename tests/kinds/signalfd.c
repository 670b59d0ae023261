/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals as a descriptor: the mask, and a signal that was pending all the time.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

static void check_signal(int fd, int number)
{
	struct signalfd_siginfo info = {};

	CHECK(read(fd, &info, sizeof(info)) == sizeof(info) && (int)info.ssi_signo == number, "signal %u",
	      info.ssi_signo);
	CHECK(info.ssi_pid == (uint32_t)getpid());
}

int main(void)
{
	struct signalfd_siginfo info;
	sigset_t blocked, first, second;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGUSR2);
	sigaddset(&blocked, SIGRTMAX);
	MUST(sigprocmask(SIG_BLOCK, &blocked, NULL));
	sigemptyset(&first);
	sigaddset(&first, SIGUSR1);
	sigemptyset(&second);
	sigaddset(&second, SIGUSR2);
	sigaddset(&second, SIGRTMAX);
	int one = MUST(signalfd(-1, &first, SFD_NONBLOCK));
	int two = MUST(signalfd(-1, &second, SFD_NONBLOCK | SFD_CLOEXEC));
	kill(getpid(), SIGUSR1);

	harness_ready();
	while (harness_wait_check()) {
		check_signal(one, SIGUSR1);
		CHECK(read(one, &info, sizeof(info)) == -1 && errno == EAGAIN);
		kill(getpid(), SIGRTMAX);
		CHECK(read(one, &info, sizeof(info)) == -1 && errno == EAGAIN, "it takes a signal of the other");
		check_signal(two, SIGRTMAX);
		CHECK(fcntl(two, F_GETFD) == FD_CLOEXEC);
		kill(getpid(), SIGUSR1);
		harness_report();
	}
	return 0;
}
