/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program in a state that cannot be checkpointed; its first argument says which. It prints "ready" when it is in it
 * and waits.
 */
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

static sem_t done;
static char selector;

static void leave(int what)
{
	if (unshare(what) < 0) {
		perror("unshare");
		exit(1);
	}
}

static void make_state(const char *name)
{
	if (!strcmp(name, "thread-files"))
		leave(CLONE_FILES);
	else if (!strcmp(name, "thread-directory"))
		leave(CLONE_FS);
	else if (!strcmp(name, "thread-network"))
		leave(CLONE_NEWNET);
	else if (!strcmp(name, "thread-host-name"))
		leave(CLONE_NEWUTS);
	else if (!strcmp(name, "thread-dispatch"))
		prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0x1000, 0x1000, &selector);
	else
		exit(2);
}

static void *run(void *argument)
{
	timer_t timer;

	/* Two threads of which one is measured: nobody can tell which. */
	if (!strcmp(argument, "thread-clock"))
		timer_create(CLOCK_THREAD_CPUTIME_ID, NULL, &timer);
	else
		make_state(argument);
	sem_post(&done);
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	sem_init(&done, 0, 0);
	if (argc != 2 || pthread_create(&thread, NULL, run, argv[1]))
		return 2;
	while (sem_wait(&done) < 0)
		;
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
