/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session on a pty, as an ssh server makes it: the parent has the master, the child leads the session, a grandchild
 * is the foreground group.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static void tell_interrupt(int signal)
{
	if (write(STDOUT_FILENO, "interrupt\n", 10) != 10)
		_exit(1);
}

static void say(const char *word)
{
	MUST(write(STDOUT_FILENO, word, strlen(word)));
}

/* Both answer each SIGUSR1 with a line about what they see. */
static void serve(const char *name, pid_t session)
{
	sigset_t set;
	int number;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	for (;;) {
		int tty = -1;
		if (sigwait(&set, &number))
			_exit(1);
		tty = open("/dev/tty", O_RDWR);
		bool good = tty >= 0 && tcgetsid(tty) == session && getsid(0) == session &&
			    tcgetpgrp(STDIN_FILENO) == tcgetpgrp(tty);
		say(name);
		say(!good ? " lost" : tcgetpgrp(tty) == getpgrp() ? " foreground" : " background");
		say("\n");
		if (tty >= 0)
			close(tty);
	}
}

static void lead(int report)
{
	sigset_t set;
	pid_t leader = getpid(), pid;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGTTOU, SIG_IGN);
	pid = MUST(fork());
	if (!pid) {
		signal(SIGINT, tell_interrupt);
		setpgid(0, 0);
		tcsetpgrp(STDIN_FILENO, getpid());
		pid = getpid();
		MUST(write(report, &pid, sizeof(pid)));
		close(report);
		serve("job", leader);
	}
	close(report);
	serve("leader", leader);
}

static void check_line(int master, const char *expected)
{
	char line[64] = "";
	size_t length = 0;

	while (length < sizeof(line) - 1 && poll(&(struct pollfd){.fd = master, .events = POLLIN}, 1, 20000) == 1) {
		if (read(master, line + length, 1) != 1)
			break;
		if (line[length] == '\n')
			break;
		length += line[length] != '\r';
	}
	line[length] = '\0';
	CHECK(!strcmp(line, expected), "\"%s\" instead of \"%s\"", line, expected);
}

int main(void)
{
	int master, report[2];
	pid_t leader, job;

	MUST(pipe(report));
	leader = MUST(forkpty(&master, NULL, NULL, NULL));
	if (!leader) {
		close(report[0]);
		lead(report[1]);
	}
	close(report[1]);
	MUST(read(report[0], &job, sizeof(job)) == sizeof(job) ? 0 : -1);
	close(report[0]);
	struct termios settings;
	MUST(tcgetattr(master, &settings));
	settings.c_lflag &= ~ECHO;
	MUST(tcsetattr(master, TCSANOW, &settings));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(!kill(leader, SIGUSR1));
		check_line(master, "leader background");
		CHECK(!kill(job, SIGUSR1));
		check_line(master, "job foreground");
		/* ^C reaches the foreground only. */
		CHECK(write(master, "\003", 1) == 1);
		check_line(master, "interrupt");
		CHECK(!kill(leader, SIGUSR1));
		check_line(master, "leader background");
		harness_report();
	}
	return 0;
}
