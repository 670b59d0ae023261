/* SPDX-License-Identifier: Apache-2.0 */
/* Personality, huge pages switched off, membarrier registrations, subreaper: bits that a process asks for once. */
#include "harness.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WANTED (ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS | UNAME26)

static sem_t thread_check, thread_checked;

static void *other_thread(void *argument)
{
	for (;;) {
		while (sem_wait(&thread_check) < 0)
			;
		CHECK(personality(0xffffffff) == WANTED, "thread: %x", personality(0xffffffff));
		sem_post(&thread_checked);
	}
	return NULL;
}

static void check_child(void *argument)
{
	int is_subreaper = -1;
	static bool is_set;

	if (!is_set) {
		MUST(personality(READ_IMPLIES_EXEC));
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 0));
		MUST(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
		is_set = true;
	}
	CHECK(personality(0xffffffff) == READ_IMPLIES_EXEC);
	CHECK(!prctl(PR_GET_CHILD_SUBREAPER, &is_subreaper) && is_subreaper == 0);
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0);
}

int main(void)
{
	pthread_t thread;

	MUST(personality(WANTED));
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
	harness_start_child(check_child, NULL);
	harness_check_children();
	sem_init(&thread_check, 0, 0);
	sem_init(&thread_checked, 0, 0);
	MUST_ZERO(pthread_create(&thread, NULL, other_thread, NULL));
	harness_ready();
	while (harness_wait_check()) {
		int is_subreaper = 0;
		CHECK(personality(0xffffffff) == WANTED, "%x", personality(0xffffffff));
		CHECK(!prctl(PR_GET_CHILD_SUBREAPER, &is_subreaper) && is_subreaper == 1);
		CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
		/* Fails with EPERM for who has not registered. */
		CHECK(!syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), "%m");
		CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0);
		sem_post(&thread_check);
		while (sem_wait(&thread_checked) < 0)
			;
		harness_check_children();
		harness_report();
	}
	return 0;
}
