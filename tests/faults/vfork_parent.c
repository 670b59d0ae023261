/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread in vfork() cannot be stopped until its child executes something or ends, which it does when its input ends.
 * The main thread, which can, answers SIGUSR1 with a line.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static void *wait_for_child(void *argument)
{
	char byte;

	if (!vfork()) {
		while (read(STDIN_FILENO, &byte, 1) > 0)
			;
		_exit(0);
	}
	return argument;
}

int main(void)
{
	pthread_t thread;
	sigset_t set;
	int signal;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (pthread_create(&thread, NULL, wait_for_child, NULL))
		return 1;
	puts("ready");
	while (!sigwait(&set, &signal))
		puts("alive");
	return 0;
}
