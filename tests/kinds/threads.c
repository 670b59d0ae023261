/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 64 threads that compute all the time, each with its own thread-local values, name, signal mask, alternate stack and
 * id. Half of them wait in a system call, half are in user space whenever the tree is frozen.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 64

struct worker {
	pthread_t thread;
	pid_t tid;
	int number;
	sem_t check, checked;
	atomic_ullong rounds;
	char alternate_stack[16384];
};

static struct worker workers[THREADS];
static _Thread_local uint64_t local_value;
static _Thread_local char local_buffer[700];

static void set_up(struct worker *worker)
{
	char name[16];
	sigset_t mask;
	stack_t stack = {.ss_sp = worker->alternate_stack, .ss_size = sizeof(worker->alternate_stack)};

	snprintf(name, sizeof(name), "worker-%d", worker->number);
	MUST(prctl(PR_SET_NAME, name));
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + worker->number % 20);
	MUST_ZERO(pthread_sigmask(SIG_BLOCK, &mask, NULL));
	MUST(sigaltstack(&stack, NULL));
	local_value = 1000003ULL * (worker->number + 1);
	memset(local_buffer, worker->number, sizeof(local_buffer));
	worker->tid = syscall(SYS_gettid);
}

static void check_self(struct worker *worker)
{
	char name[16], expected[16];
	sigset_t mask;
	stack_t stack;

	snprintf(expected, sizeof(expected), "worker-%d", worker->number);
	prctl(PR_GET_NAME, name);
	CHECK(!strcmp(name, expected), "%s is %s", expected, name);
	CHECK(local_value == 1000003ULL * (worker->number + 1), "%s: %lx", name, local_value);
	CHECK(local_buffer[0] == worker->number && local_buffer[699] == worker->number);
	CHECK(syscall(SYS_gettid) == worker->tid && pthread_equal(pthread_self(), worker->thread));
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	for (int signal = SIGRTMIN; signal < SIGRTMIN + 20; signal++)
		CHECK(sigismember(&mask, signal) == (signal == SIGRTMIN + worker->number % 20), "%s: %d", name, signal);
	CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_sp == worker->alternate_stack &&
	      stack.ss_size == sizeof(worker->alternate_stack) && stack.ss_flags == 0);
}

/* A sum whose value is known as long as no register was lost on the way. */
static uint64_t compute(uint64_t seed)
{
	uint64_t value = seed;

	for (int i = 0; i < 20000; i++)
		value = value * 6364136223846793005ULL + 1442695040888963407ULL;
	return value;
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	uint64_t expected = compute(worker->number);

	set_up(worker);
	sem_post(&worker->checked);
	for (;;) {
		if (worker->number % 2 == 0) {
			while (sem_wait(&worker->check) < 0)
				;
		} else {
			while (sem_trywait(&worker->check) < 0) {
				uint64_t value = compute(worker->number);
				CHECK(value == expected, "thread %d computed %lx", worker->number, value);
				atomic_fetch_add(&worker->rounds, 1);
			}
		}
		check_self(worker);
		sem_post(&worker->checked);
	}
	return NULL;
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

int main(void)
{
	for (int i = 0; i < THREADS; i++) {
		workers[i].number = i;
		sem_init(&workers[i].check, 0, 0);
		sem_init(&workers[i].checked, 0, 0);
		MUST_ZERO(pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (int i = 0; i < THREADS; i++)
		wait_for(&workers[i].checked);
	harness_ready();
	while (harness_wait_check()) {
		for (int i = 0; i < THREADS; i++)
			sem_post(&workers[i].check);
		for (int i = 0; i < THREADS; i++)
			wait_for(&workers[i].checked);
		/* The busy ones go on. */
		for (int i = 1; i < THREADS; i += 2) {
			uint64_t before = atomic_load(&workers[i].rounds);
			while (atomic_load(&workers[i].rounds) == before)
				usleep(100);
		}
		harness_report();
	}
	return 0;
}
