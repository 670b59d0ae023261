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

/* Both answer each byte of their pipe with a line about what they see. */
static void serve(const char *name, pid_t session, int requests)
{
	char byte;

	while (read(requests, &byte, 1) == 1) {
		int tty = open("/dev/tty", O_RDWR);
		bool good = tty >= 0 && tcgetsid(tty) == session && getsid(0) == session &&
			    tcgetpgrp(STDIN_FILENO) == tcgetpgrp(tty);
		bool foreground = good && tcgetpgrp(tty) == getpgrp();
		/* Before the answer: who has it may look at our descriptors at once. */
		if (tty >= 0)
			close(tty);
		say(name);
		say(!good ? " lost" : foreground ? " foreground" : " background");
		say("\n");
	}
	_exit(0);
}

static void lead(int report, int leader_requests, int job_requests)
{
	pid_t leader = getpid(), pid;

	signal(SIGTTOU, SIG_IGN);
	pid = MUST(fork());
	if (!pid) {
		signal(SIGINT, tell_interrupt);
		setpgid(0, 0);
		tcsetpgrp(STDIN_FILENO, getpid());
		MUST(write(report, "", 1));
		close(report);
		close(leader_requests);
		serve("job", leader, job_requests);
	}
	close(report);
	close(job_requests);
	serve("leader", leader, leader_requests);
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
	int master, report[2], to_leader[2], to_job[2];
	struct termios settings;
	pid_t leader;
	char byte;

	MUST(pipe(report));
	MUST(pipe(to_leader));
	MUST(pipe(to_job));
	leader = MUST(forkpty(&master, NULL, NULL, NULL));
	if (!leader) {
		close(report[0]);
		close(to_leader[1]);
		close(to_job[1]);
		lead(report[1], to_leader[0], to_job[0]);
	}
	close(report[1]);
	MUST(read(report[0], &byte, 1) == 1 ? 0 : -1);
	close(report[0]);
	MUST(tcgetattr(master, &settings));
	settings.c_lflag &= ~ECHO;
	MUST(tcsetattr(master, TCSANOW, &settings));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(write(to_leader[1], "?", 1) == 1);
		check_line(master, "leader background");
		CHECK(write(to_job[1], "?", 1) == 1);
		check_line(master, "job foreground");
		/* ^C reaches the foreground only. */
		CHECK(write(master, "\003", 1) == 1);
		check_line(master, "interrupt");
		CHECK(write(to_leader[1], "?", 1) == 1);
		check_line(master, "leader background");
		harness_report();
	}
	return 0;
}
