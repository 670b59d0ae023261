/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thousand threads, each waiting on its own futex: all answer, all keep their ids.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 1000

static struct thread {
	pthread_t thread;
	pid_t tid;
	sem_t request;
} threads[THREADS];
static sem_t answers;
static _Thread_local struct thread *self;

static void *answer(void *argument)
{
	self = argument;
	self->tid = syscall(SYS_gettid);
	sem_post(&answers);
	for (;;) {
		while (sem_wait(&self->request) < 0)
			CHECK(errno == EINTR, "%m");
		CHECK(self == argument && self->tid == syscall(SYS_gettid));
		sem_post(&answers);
	}
	return NULL;
}

static void wait_for_all(void)
{
	for (int i = 0; i < THREADS; i++)
		while (sem_wait(&answers) < 0)
			;
}

int main(void)
{
	pthread_attr_t attributes;

	sem_init(&answers, 0, 0);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (int i = 0; i < THREADS; i++) {
		sem_init(&threads[i].request, 0, 0);
		MUST_ZERO(pthread_create(&threads[i].thread, &attributes, answer, &threads[i]));
	}
	wait_for_all();
	harness_ready();
	while (harness_wait_check()) {
		for (int i = 0; i < THREADS; i++)
			sem_post(&threads[i].request);
		wait_for_all();
		harness_report();
	}
	return 0;
}
