/* SPDX-License-Identifier: Apache-2.0 */
/* Scheduling of threads: nice, policies and priorities, processors, disk priority, timer slack; values of /proc. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define IO_IDLE (3 << 13)
#define IO_BEST_EFFORT_6 (2 << 13 | 6)

struct attributes {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

struct scheduled {
	const char *name;
	int nice, policy, priority, io;
	bool reset_on_fork, one_processor;
	unsigned long slack_ns;
	struct attributes attributes;
	cpu_set_t processors;
	sem_t check, checked;
};

static struct scheduled threads[] = {
	{"plain", 0, SCHED_OTHER},
	{"nice", 7, SCHED_OTHER, .slack_ns = 123456},
	{"eager", -5, SCHED_OTHER, .io = IO_BEST_EFFORT_6},
	{"batch", 3, SCHED_BATCH, .one_processor = true},
	{"idle", 0, SCHED_IDLE, .io = IO_IDLE},
	{"fifo", 0, SCHED_FIFO, 3, .one_processor = true},
	{"round robin", 2, SCHED_RR, 40, .reset_on_fork = true},
	{"reset", 0, SCHED_OTHER, .reset_on_fork = true},
};
#define THREADS (sizeof(threads) / sizeof(threads[0]))

static void read_attributes(struct attributes *attributes)
{
	memset(attributes, 0, sizeof(*attributes));
	MUST(syscall(SYS_sched_getattr, 0, attributes, sizeof(*attributes), 0));
}

static void set_up(struct scheduled *thread)
{
	struct sched_param parameter = {thread->priority};
	cpu_set_t one;

	MUST(setpriority(PRIO_PROCESS, 0, thread->nice));
	if (thread->policy != SCHED_OTHER || thread->reset_on_fork)
		MUST(sched_setscheduler(0, thread->policy | (thread->reset_on_fork ? SCHED_RESET_ON_FORK : 0),
					&parameter));
	if (thread->one_processor) {
		CPU_ZERO(&one);
		MUST(sched_getaffinity(0, sizeof(thread->processors), &thread->processors));
		for (int i = CPU_SETSIZE - 1; i >= 0 && !CPU_COUNT(&one); i--)
			if (CPU_ISSET(i, &thread->processors))
				CPU_SET(i, &one);
		MUST(sched_setaffinity(0, sizeof(one), &one));
	}
	if (thread->io)
		MUST(syscall(SYS_ioprio_set, 1, 0, thread->io));
	if (thread->slack_ns)
		MUST(prctl(PR_SET_TIMERSLACK, thread->slack_ns));
	thread->slack_ns = prctl(PR_GET_TIMERSLACK);
	MUST(sched_getaffinity(0, sizeof(thread->processors), &thread->processors));
	read_attributes(&thread->attributes);
}

static void check_self(const struct scheduled *thread)
{
	struct attributes now;
	cpu_set_t processors;

	read_attributes(&now);
	CHECK(!memcmp(&now, &thread->attributes, sizeof(now)), "%s: policy %u priority %u nice %d flags %lx",
	      thread->name, now.policy, now.priority, now.nice, now.flags);
	CHECK(getpriority(PRIO_PROCESS, 0) == thread->nice, "%s: nice %d", thread->name, getpriority(PRIO_PROCESS, 0));
	CHECK(!sched_getaffinity(0, sizeof(processors), &processors) && CPU_EQUAL(&processors, &thread->processors),
	      "%s: %d processors", thread->name, CPU_COUNT(&processors));
	CHECK(syscall(SYS_ioprio_get, 1, 0) == thread->io, "%s: io %lx", thread->name, syscall(SYS_ioprio_get, 1, 0));
	CHECK((unsigned long)prctl(PR_GET_TIMERSLACK) == thread->slack_ns, "%s: slack %d", thread->name,
	      prctl(PR_GET_TIMERSLACK));
}

static void *run(void *argument)
{
	struct scheduled *thread = argument;

	set_up(thread);
	sem_post(&thread->checked);
	for (;;) {
		while (sem_wait(&thread->check) < 0)
			;
		check_self(thread);
		sem_post(&thread->checked);
	}
	return NULL;
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

static void write_value(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static long read_value(const char *path, int base)
{
	char text[32] = "";
	int fd = MUST(open(path, O_RDONLY));

	MUST(read(fd, text, sizeof(text) - 1));
	close(fd);
	return strtol(text, NULL, base);
}

int main(void)
{
	pthread_t thread;

	if (geteuid() != 0)
		harness_skip("needs root");
	for (size_t i = 0; i < THREADS; i++) {
		sem_init(&threads[i].check, 0, 0);
		sem_init(&threads[i].checked, 0, 0);
		MUST_ZERO(pthread_create(&thread, NULL, run, &threads[i]));
		wait_for(&threads[i].checked);
	}
	write_value("/proc/self/oom_score_adj", "321");
	write_value("/proc/self/coredump_filter", "0x51");
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < THREADS; i++) {
			sem_post(&threads[i].check);
			wait_for(&threads[i].checked);
		}
		CHECK(read_value("/proc/self/oom_score_adj", 10) == 321);
		CHECK(read_value("/proc/self/coredump_filter", 16) == 0x51);
		harness_report();
	}
	return 0;
}
