/* SPDX-License-Identifier: Apache-2.0 */
#include "base/parallel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { MAX_THREADS = 16 };

struct parallel {
	size_t count;
	atomic_size_t next;
	void (*work)(void *context, size_t index);
	void *context;
};

static void *run(void *argument)
{
	struct parallel *parallel = argument;
	size_t index;

	while ((index = atomic_fetch_add(&parallel->next, 1)) < parallel->count)
		parallel->work(parallel->context, index);
	return NULL;
}

void parallel_for(size_t count, size_t worth, void (*work)(void *context, size_t index), void *context)
{
	struct parallel parallel = {.count = count, .work = work, .context = context};
	pthread_t threads[MAX_THREADS];
	size_t wanted = count / worth, started = 0;
	/* Asking how many there are means reading a file. */
	size_t cores = wanted > 1 ? sysconf(_SC_NPROCESSORS_ONLN) : 1;

	while (started + 1 < wanted && started + 1 < cores && started < MAX_THREADS &&
	       !pthread_create(&threads[started], NULL, run, &parallel))
		started++;
	run(&parallel);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
}
