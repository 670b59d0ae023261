/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parent-death signal: of a plain child, of one that is another user, of a thread. It must also work: a child of
 * a child gets it when its parent ends, and the program, which is the subreaper, finds it ended by it.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void expect_signal(const char *who, int expected)
{
	int signal = -1;

	CHECK(!prctl(PR_GET_PDEATHSIG, &signal) && signal == expected, "%s: %d", who, signal);
}

static sem_t thread_check, thread_checked;

static void *other_thread(void *argument)
{
	MUST(prctl(PR_SET_PDEATHSIG, SIGRTMAX));
	sem_post(&thread_checked);
	for (;;) {
		while (sem_wait(&thread_check) < 0)
			;
		expect_signal("thread", SIGRTMAX);
		sem_post(&thread_checked);
	}
	return NULL;
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

static void check_plain(void *argument)
{
	static bool is_set;
	pthread_t thread;

	if (!is_set) {
		MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
		sem_init(&thread_check, 0, 0);
		sem_init(&thread_checked, 0, 0);
		MUST_ZERO(pthread_create(&thread, NULL, other_thread, NULL));
		wait_for(&thread_checked);
		is_set = true;
	}
	expect_signal("plain", SIGUSR2);
	sem_post(&thread_check);
	wait_for(&thread_checked);
}

static void check_user(void *argument)
{
	static bool is_set;

	if (!is_set) {
		MUST(setresgid(1001, 1001, 1001));
		MUST(setresuid(1001, 1001, 1001));
		MUST(prctl(PR_SET_PDEATHSIG, SIGHUP));
		is_set = true;
	}
	expect_signal("user", SIGHUP);
}

static pid_t middle;

/* A child that waits for its end, and its child, which shall die of it. */
static void start_pair(void)
{
	int ready[2];
	char byte;

	MUST(pipe(ready));
	middle = MUST(fork());
	if (!middle) {
		if (!MUST(fork())) {
			MUST(prctl(PR_SET_PDEATHSIG, SIGTERM));
			MUST(write(ready[1], "r", 1));
		}
		for (;;)
			pause();
	}
	MUST(read(ready[0], &byte, 1));
	close(ready[0]);
	close(ready[1]);
}

static void check_pair(void)
{
	int status = 0;

	CHECK(!kill(middle, SIGKILL));
	CHECK(waitpid(middle, &status, 0) == middle && WIFSIGNALED(status));
	/* The grandchild is ours now. */
	pid_t pid = waitpid(-1, &status, 0);
	CHECK(pid > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "pid %d status %x", pid, status);
}

int main(void)
{
	if (geteuid() != 0)
		harness_skip("needs root");
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(prctl(PR_SET_PDEATHSIG, 0));
	harness_start_child(check_plain, NULL);
	harness_start_child(check_user, NULL);
	harness_check_children();
	start_pair();
	harness_ready();
	while (harness_wait_check()) {
		expect_signal("main", 0);
		harness_check_children();
		check_pair();
		start_pair();
		harness_report();
	}
	return 0;
}
