/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree of processes: sessions and groups (also one whose leader is gone), a zombie whose status is collected after
 * the restore, a stopped child, an orphan that a subreaper in the middle of the tree adopted.
 */
/* in-place */
#include "harness.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct place {
	pid_t pid, ppid, pgid, sid;
};

static struct place here(void)
{
	return (struct place){getpid(), getppid(), getpgid(0), getsid(0)};
}

static void check_place(void *argument)
{
	struct place *expected = argument, now = here();

	/* The root's parent is whoever restored it; everybody else's is in the tree. */
	CHECK(now.pid == expected->pid && now.ppid == expected->ppid && now.pgid == expected->pgid &&
		      now.sid == expected->sid,
	      "pid %d parent %d group %d session %d, were %d %d %d %d", now.pid, now.ppid, now.pgid, now.sid,
	      expected->pid, expected->ppid, expected->pgid, expected->sid);
}

/* What a child does to come to its place before it stays. */
static void in_new_session(void *argument)
{
	static struct place place;

	if (getsid(0) != getpid()) {
		MUST(setsid());
		place = here();
	}
	check_place(&place);
}

static void in_new_group(void *argument)
{
	static struct place place;

	if (!place.pid) {
		MUST(setpgid(0, 0));
		place = here();
	}
	check_place(&place);
}

static void in_group_of(void *argument)
{
	static struct place place;

	if (!place.pid) {
		MUST(setpgid(0, *(pid_t *)argument));
		place = here();
	}
	check_place(&place);
}

/* A subreaper whose grandchild lost its parent. */
struct adopted {
	pid_t orphan;
	int pipe[2];
};

static void as_subreaper(void *argument)
{
	static struct adopted adopted;
	char byte;
	int is_subreaper = 0;

	if (!adopted.orphan) {
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
		MUST(pipe(adopted.pipe));
		pid_t middle = MUST(fork());
		if (middle == 0) {
			pid_t orphan = fork();
			if (orphan == 0) {
				close(adopted.pipe[1]);
				/* Lives until its subreaper ends. */
				setpgid(0, 0);
				while (read(adopted.pipe[0], &byte, 1) < 0)
					;
				_exit(0);
			}
			MUST((int)write(adopted.pipe[1], &orphan, 0));
			_exit(orphan & 0xff);
		}
		int status;
		MUST(waitpid(middle, &status, 0));
		char path[64], text[512] = "";
		snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
		FILE *children = fopen(path, "r");
		if (!children || !fgets(text, sizeof(text), children) || sscanf(text, "%d", &adopted.orphan) != 1)
			CHECK(false, "no orphan came: \"%s\"", text);
		fclose(children);
	}
	prctl(PR_GET_CHILD_SUBREAPER, &is_subreaper);
	CHECK(is_subreaper == 1);
	siginfo_t information = {0};
	CHECK(waitid(P_PID, adopted.orphan, &information, WEXITED | WNOHANG) == 0 && information.si_pid == 0,
	      "orphan %d is not our living child: %m", adopted.orphan);
}

static pid_t new_zombie(int code)
{
	pid_t pid = MUST(fork());
	siginfo_t information;

	if (pid == 0) {
		if (code < 0)
			kill(getpid(), -code);
		_exit(code);
	}
	/* Wait until it is dead without collecting it. */
	MUST(waitid(P_PID, pid, &information, WEXITED | WNOWAIT));
	return pid;
}

static void check_zombie(pid_t *zombie, int code)
{
	int status;

	CHECK(waitpid(*zombie, &status, 0) == *zombie, "zombie %d: %m", *zombie);
	if (code < 0)
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == -code, "status %x", status);
	else
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code, "status %x", status);
	*zombie = new_zombie(code);
}

static pid_t new_stopped(void)
{
	pid_t pid = MUST(fork());
	int status;

	if (pid == 0)
		for (;;)
			pause();
	MUST(kill(pid, SIGSTOP));
	MUST(waitpid(pid, &status, WUNTRACED));
	return pid;
}

static char state_of(pid_t pid)
{
	char path[64], state = '?';

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *stat = fopen(path, "r");
	if (!stat || fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
		state = '?';
	if (stat)
		fclose(stat);
	return state;
}

/* Stopped it stays, running it goes on, and stopped again it is. */
static void check_stopped(pid_t pid)
{
	int status;

	CHECK(state_of(pid) == 'T', "state %c", state_of(pid));
	CHECK(kill(pid, SIGCONT) == 0);
	CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
	CHECK(kill(pid, SIGSTOP) == 0);
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
}

int main(void)
{
	struct place self = here();
	pid_t zombie = new_zombie(37), killed = new_zombie(-SIGUSR1), stopped = new_stopped();

	harness_start_child(in_new_session, NULL);
	pid_t leader = harness_start_child(in_new_group, NULL);
	harness_check_children();
	harness_start_child(in_group_of, &leader);
	harness_start_child(as_subreaper, NULL);

	/* A group that outlives its leader. */
	pid_t gone = MUST(fork());
	if (gone == 0) {
		setpgid(0, 0);
		for (;;)
			pause();
	}
	MUST(setpgid(gone, gone) < 0 && errno != EACCES ? -1 : 0);
	harness_start_child(in_group_of, &gone);
	harness_check_children();
	MUST(kill(gone, SIGKILL));
	MUST(waitpid(gone, NULL, 0));
	harness_ready();
	while (harness_wait_check()) {
		CHECK(getpid() == self.pid && getpgid(0) == self.pgid && getsid(0) == self.sid);
		check_zombie(&zombie, 37);
		check_zombie(&killed, -SIGUSR1);
		check_stopped(stopped);
		harness_check_children();
		harness_report();
	}
	return 0;
}
