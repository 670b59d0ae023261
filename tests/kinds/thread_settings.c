/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What threads have asked for themselves: no time stamp counter, word of broken memory, nodes for their memory, and the
 * timer slack that their creator had. The leader has all of them too, other than its threads.
 */
#include "harness.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5
#endif

enum { NODE_BITS = 1024, NODE_WORDS = NODE_BITS / 64 };

struct settings {
	const char *name;
	int tsc, machine_check, policy;
	unsigned long node; /* a bit of the first word */
	unsigned long slack_ns, default_slack_ns;
	sem_t check, checked;
};

static struct settings threads[] = {
	{"plain", PR_TSC_ENABLE, PR_MCE_KILL_DEFAULT, MPOL_DEFAULT, 0, 50000, 50000},
	{"no counter", PR_TSC_SIGSEGV, PR_MCE_KILL_DEFAULT, MPOL_DEFAULT, 0, 70000, 50000},
	{"early", PR_TSC_ENABLE, PR_MCE_KILL_EARLY, MPOL_BIND, 1, 50000, 60000},
	{"late", PR_TSC_ENABLE, PR_MCE_KILL_LATE, MPOL_INTERLEAVE, 1, 60000, 60000},
	{"preferred", PR_TSC_SIGSEGV, PR_MCE_KILL_EARLY, MPOL_PREFERRED, 1, 1, 80000},
	{"local", PR_TSC_ENABLE, PR_MCE_KILL_DEFAULT, MPOL_LOCAL, 0, 50000, 50000},
	{"static", PR_TSC_ENABLE, PR_MCE_KILL_DEFAULT, MPOL_BIND | MPOL_F_STATIC_NODES, 1, 50000, 50000},
};
#define THREADS (sizeof(threads) / sizeof(threads[0]))

static struct settings leader = {"leader", PR_TSC_ENABLE, PR_MCE_KILL_LATE, MPOL_BIND, 1, 90000, 0};
static struct settings child = {"child", PR_TSC_SIGSEGV, PR_MCE_KILL_EARLY, MPOL_DEFAULT, 0, 50000, 90000};
static bool has_policies;
static __thread sigjmp_buf back;

static void came_back(int signal)
{
	siglongjmp(back, 1);
}

static bool reads_counter(void)
{
	if (sigsetjmp(back, 1))
		return false;
	__rdtsc();
	return true;
}

static void set_up(struct settings *thread)
{
	MUST(prctl(PR_SET_TSC, thread->tsc, 0, 0, 0));
	if (thread->machine_check == PR_MCE_KILL_DEFAULT)
		MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0));
	else
		MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, thread->machine_check, 0, 0));
	if (has_policies)
		MUST(syscall(SYS_set_mempolicy, thread->policy, &thread->node, 65));
	MUST(prctl(PR_SET_TIMERSLACK, thread->slack_ns));
}

static unsigned long default_slack_ns(void)
{
	unsigned long now_ns = prctl(PR_GET_TIMERSLACK), default_ns;

	prctl(PR_SET_TIMERSLACK, 0);
	default_ns = prctl(PR_GET_TIMERSLACK);
	prctl(PR_SET_TIMERSLACK, now_ns);
	return default_ns;
}

static void check_self(void *argument)
{
	const struct settings *thread = argument;
	unsigned long nodes[NODE_WORDS] = {};
	int tsc = 0, policy = -1;

	CHECK(!prctl(PR_GET_TSC, &tsc, 0, 0, 0) && tsc == thread->tsc, "%s: %d", thread->name, tsc);
	CHECK(reads_counter() == (thread->tsc == PR_TSC_ENABLE), "%s", thread->name);
	CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == thread->machine_check, "%s: %d", thread->name,
	      prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
	CHECK((unsigned long)prctl(PR_GET_TIMERSLACK) == thread->slack_ns, "%s: %d", thread->name,
	      prctl(PR_GET_TIMERSLACK));
	if (thread->default_slack_ns)
		CHECK(default_slack_ns() == thread->default_slack_ns, "%s: %lu", thread->name, default_slack_ns());
	if (!has_policies)
		return;
	CHECK(!syscall(SYS_get_mempolicy, &policy, nodes, NODE_BITS, 0, 0));
	CHECK(policy == thread->policy && nodes[0] == thread->node, "%s: %#x %lx", thread->name, policy, nodes[0]);
}

static void check_child(void *argument)
{
	static bool set;

	if (!set)
		set_up(argument);
	set = true;
	check_self(argument);
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

static void *run(void *argument)
{
	struct settings *thread = argument;

	set_up(thread);
	sem_post(&thread->checked);
	for (;;) {
		wait_for(&thread->check);
		check_self(thread);
		sem_post(&thread->checked);
	}
	return NULL;
}

int main(void)
{
	pthread_t thread;

	has_policies = !syscall(SYS_get_mempolicy, NULL, NULL, 0, 0, 0);
	signal(SIGSEGV, came_back);
	for (size_t i = 0; i < THREADS; i++) {
		sem_init(&threads[i].check, 0, 0);
		sem_init(&threads[i].checked, 0, 0);
		MUST(prctl(PR_SET_TIMERSLACK, threads[i].default_slack_ns));
		MUST_ZERO(pthread_create(&thread, NULL, run, &threads[i]));
		wait_for(&threads[i].checked);
	}
	set_up(&leader);
	leader.default_slack_ns = default_slack_ns();
	harness_start_child(check_child, &child);
	harness_check_children();
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < THREADS; i++) {
			sem_post(&threads[i].check);
			wait_for(&threads[i].checked);
		}
		check_self(&leader);
		harness_check_children();
		harness_report();
	}
	return 0;
}
