/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/throttle.h"

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "dump/stages.h"
#include "model/dump.h"

/* Short enough that clients do not notice a stop, long enough that stopping costs little. */
enum { PERIOD_MS = 50, FREEZE_TIMEOUT_SECONDS = 2 };

struct throttle {
	struct dump_options options;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned percent;
	bool resting, ended;
	bool holding; /* the tree stands */
};

/* Waits, with the lock held, until the time is over or something is wanted. */
static void wait_ms(struct throttle *throttle, unsigned ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += ms * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	while (!throttle->resting && !throttle->ended &&
	       !pthread_cond_timedwait(&throttle->changed, &throttle->lock, &until))
		;
}

static void forget(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		free(dump->tasks[i]->threads);
		close_fd_pointer(&dump->tasks[i]->pidfd);
		close_fd_pointer(&dump->tasks[i]->proc_dirfd);
	}
	free(dump->tasks);
	arena_free(&dump->arena);
}

/* With the lock held but while the tree is being stopped. */
static void hold(struct throttle *throttle, unsigned ms)
{
	struct dump dump = {.options = &throttle->options, .images_dirfd = -1};

	throttle->holding = true;
	pthread_mutex_unlock(&throttle->lock);
	int error = freeze_tree(&dump);
	pthread_mutex_lock(&throttle->lock);
	if (!error)
		wait_ms(throttle, ms);
	else
		log_warn("cannot slow the tree down: %s", dump.failure.cause);
	thaw_tree(&dump);
	forget(&dump);
	throttle->holding = false;
	pthread_cond_broadcast(&throttle->changed);
}

static void *run(void *argument)
{
	struct throttle *throttle = argument;

	pthread_mutex_lock(&throttle->lock);
	while (!throttle->ended) {
		unsigned stop_ms = PERIOD_MS * throttle->percent / 100;
		if (throttle->resting || !stop_ms) {
			pthread_cond_wait(&throttle->changed, &throttle->lock);
			continue;
		}
		hold(throttle, stop_ms);
		wait_ms(throttle, PERIOD_MS - stop_ms);
	}
	pthread_mutex_unlock(&throttle->lock);
	return NULL;
}

int throttle_new(pid_t root_pid, struct failure *failure, struct throttle **ret_throttle)
{
	struct throttle *throttle = xcalloc(1, sizeof(*throttle));
	pthread_condattr_t attributes;

	throttle->options = (struct dump_options){
		.pid = root_pid, .timeout_seconds = FREEZE_TIMEOUT_SECONDS, .images_dirfd = -1, .shell_job = true};
	throttle->resting = true;
	pthread_mutex_init(&throttle->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&throttle->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	int error = pthread_create(&throttle->thread, NULL, run, throttle);
	if (error) {
		free(throttle);
		return fail_errno(failure, error, "throttle", NULL, NULL, "cannot start a thread");
	}
	*ret_throttle = throttle;
	return 0;
}

void throttle_set(struct throttle *throttle, unsigned percent)
{
	pthread_mutex_lock(&throttle->lock);
	throttle->percent = percent;
	pthread_cond_broadcast(&throttle->changed);
	pthread_mutex_unlock(&throttle->lock);
}

void throttle_rest(struct throttle *throttle)
{
	pthread_mutex_lock(&throttle->lock);
	throttle->resting = true;
	pthread_cond_broadcast(&throttle->changed);
	while (throttle->holding)
		pthread_cond_wait(&throttle->changed, &throttle->lock);
	pthread_mutex_unlock(&throttle->lock);
}

void throttle_go(struct throttle *throttle)
{
	pthread_mutex_lock(&throttle->lock);
	throttle->resting = false;
	pthread_cond_broadcast(&throttle->changed);
	pthread_mutex_unlock(&throttle->lock);
}

void throttle_free(struct throttle *throttle)
{
	if (!throttle)
		return;
	pthread_mutex_lock(&throttle->lock);
	throttle->ended = true;
	pthread_cond_broadcast(&throttle->changed);
	pthread_mutex_unlock(&throttle->lock);
	pthread_join(throttle->thread, NULL);
	pthread_cond_destroy(&throttle->changed);
	pthread_mutex_destroy(&throttle->lock);
	free(throttle);
}
