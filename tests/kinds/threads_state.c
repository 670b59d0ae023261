/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a thread has besides its registers: the place where its end is told (pthread_join), its list of robust
 * futexes, its name. Threads that are ended and joined after a restore show that the kernel knows the places.
 */
#include "harness.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 8

struct worker {
	pthread_t thread;
	int number;
	void *robust_list, *tid_address;
	sem_t go;
};

static struct worker workers[THREADS];
static sem_t ready;

static void *robust_list_of_self(void)
{
	void *list = NULL;
	size_t length = 0;

	syscall(SYS_get_robust_list, 0, &list, &length);
	return length == sizeof(struct robust_list_head) ? list : NULL;
}

static void *tid_address_of_self(void)
{
	void *address = NULL;

	prctl(PR_GET_TID_ADDRESS, &address);
	return address;
}

static void check_self(const struct worker *worker)
{
	char name[16], expected[16];

	snprintf(expected, sizeof(expected), "(n %d) \xff", worker->number);
	prctl(PR_GET_NAME, name);
	CHECK(!strcmp(name, expected), "%s", name);
	CHECK(robust_list_of_self() == worker->robust_list, "thread %d", worker->number);
	CHECK(tid_address_of_self() == worker->tid_address, "thread %d", worker->number);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	char name[16];

	snprintf(name, sizeof(name), "(n %d) \xff", worker->number);
	prctl(PR_SET_NAME, name);
	worker->robust_list = robust_list_of_self();
	worker->tid_address = tid_address_of_self();
	sem_post(&ready);
	while (sem_wait(&worker->go) < 0)
		;
	check_self(worker);
	return worker;
}

static void start_workers(void)
{
	for (int i = 0; i < THREADS; i++) {
		workers[i].number = i;
		sem_init(&workers[i].go, 0, 0);
		MUST_ZERO(pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (int i = 0; i < THREADS; i++)
		while (sem_wait(&ready) < 0)
			;
}

int main(void)
{
	sem_init(&ready, 0, 0);
	MUST(prctl(PR_SET_NAME, "main\twith\\odd)"));
	start_workers();
	void *robust_list = robust_list_of_self(), *tid_address = tid_address_of_self();
	harness_ready();
	while (harness_wait_check()) {
		char name[16];
		prctl(PR_GET_NAME, name);
		CHECK(!strcmp(name, "main\twith\\odd)"), "%s", name);
		CHECK(robust_list_of_self() == robust_list && tid_address_of_self() == tid_address);
		for (int i = 0; i < THREADS; i++) {
			void *result = NULL;
			sem_post(&workers[i].go);
			CHECK(!pthread_join(workers[i].thread, &result) && result == &workers[i], "thread %d", i);
		}
		start_workers();
		harness_report();
	}
	return 0;
}
