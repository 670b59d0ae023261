/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Robust mutexes: a thread and a process that hold one die after the restore, and the next one who locks is told. The
 * kernel finds them by the list that each thread registered. Also pthread_join, which needs clear_child_tid.
 */
#include "harness.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct shared {
	pthread_mutex_t for_thread, for_process;
	sem_t held, die;
};

static struct shared *shared;

static void hold_and_die(pthread_mutex_t *mutex)
{
	pthread_mutex_lock(mutex);
	sem_post(&shared->held);
	while (sem_wait(&shared->die) < 0)
		;
}

static void *thread_main(void *argument)
{
	hold_and_die(&shared->for_thread);
	return (void *)0x5151;
}

static void wait_held(void)
{
	while (sem_wait(&shared->held) < 0)
		;
}

static void check_owner_died(pthread_mutex_t *mutex, const char *whose)
{
	int error = pthread_mutex_lock(mutex);

	CHECK(error == EOWNERDEAD, "%s: %s", whose, strerror(error));
	if (error == EOWNERDEAD)
		pthread_mutex_consistent(mutex);
	pthread_mutex_unlock(mutex);
}

int main(void)
{
	pthread_mutexattr_t attributes;
	pthread_t thread;
	void *result;
	int status;

	shared = MUST((struct shared *)mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
					    -1, 0));
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	MUST_ZERO(pthread_mutex_init(&shared->for_thread, &attributes));
	MUST_ZERO(pthread_mutex_init(&shared->for_process, &attributes));
	sem_init(&shared->held, 1, 0);
	sem_init(&shared->die, 1, 0);

	for (bool first = true;; first = false) {
		MUST_ZERO(pthread_create(&thread, NULL, thread_main, NULL));
		wait_held();
		pid_t process = MUST(fork());
		if (process == 0) {
			hold_and_die(&shared->for_process);
			_exit(0);
		}
		wait_held();
		if (first)
			harness_ready();
		else
			harness_report();
		if (!harness_wait_check())
			return 0;
		struct robust_list_head *head = NULL;
		size_t length = 0;
		CHECK(syscall(SYS_get_robust_list, 0, &head, &length) == 0 && head && length == 24, "%p %zu",
		      (void *)head, length);
		kill(process, SIGKILL);
		CHECK(waitpid(process, &status, 0) == process);
		check_owner_died(&shared->for_process, "process");
		sem_post(&shared->die);
		CHECK(pthread_join(thread, &result) == 0 && result == (void *)0x5151);
		check_owner_died(&shared->for_thread, "thread");
	}
}
