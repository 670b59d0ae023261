/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scheduling of threads: nice, policies and priorities, slices, processors, disk priority, timer slack; values of
 * /proc, among them the nice value of the session.
 */
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

#define AUTOGROUP "/proc/self/autogroup"
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
	uint64_t slice_ns;
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
	{"slice", 1, SCHED_OTHER, .slice_ns = 300000},
	{"batch slice", 0, SCHED_BATCH, .slice_ns = 90000000},
	{"idle slice", 0, SCHED_IDLE, .slice_ns = 500000},
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

/* Kernels before 6.12 ignore it. */
static void set_slice(const struct scheduled *thread)
{
	struct attributes attributes = {
		.size = sizeof(attributes), .policy = SCHED_OTHER, .nice = thread->nice, .runtime = thread->slice_ns};

	MUST(syscall(SYS_sched_setattr, 0, &attributes, 0));
	attributes.policy = thread->policy;
	MUST(syscall(SYS_sched_setattr, 0, &attributes, 0));
}

static void set_up(struct scheduled *thread)
{
	struct sched_param parameter = {thread->priority};
	cpu_set_t one;

	MUST(setpriority(PRIO_PROCESS, 0, thread->nice));
	if (thread->slice_ns)
		set_slice(thread);
	else if (thread->policy != SCHED_OTHER || thread->reset_on_fork)
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

/* Of this program's session; the kernel may have no such groups. */
static int session_nice(void)
{
	int nice = 0;
	FILE *file = fopen(AUTOGROUP, "r");

	if (file && fscanf(file, "/autogroup-%*u nice %d", &nice) != 1)
		nice = 0;
	if (file)
		fclose(file);
	return nice;
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
	if (getsid(0) == getpid() && !access(AUTOGROUP, W_OK))
		write_value(AUTOGROUP, "4");
	int wanted_session_nice = session_nice();
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < THREADS; i++) {
			sem_post(&threads[i].check);
			wait_for(&threads[i].checked);
		}
		CHECK(read_value("/proc/self/oom_score_adj", 10) == 321);
		CHECK(read_value("/proc/self/coredump_filter", 16) == 0x51);
		CHECK(session_nice() == wanted_session_nice, "%d", session_nice());
		harness_report();
	}
	return 0;
}
