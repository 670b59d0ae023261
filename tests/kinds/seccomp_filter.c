/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seccomp: two filters one upon the other, shared with a child that adds a third; threads with one chain and with
 * different ones; strict mode. Who has filters is a user without privileges.
 */
#include "harness.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Makes one system call fail with an error that it never has. */
static void forbid(int number, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

/* -1 if the call passes, else the error of the filter. */
static int error_of(int number)
{
	errno = 0;
	return syscall(number, 0, 0, 0) < 0 ? errno : -1;
}

static void check_first_two(const char *who)
{
	CHECK(error_of(SYS_getppid) == 71, "%s: %d", who, error_of(SYS_getppid));
	CHECK(error_of(SYS_sched_get_priority_max) == 72, "%s: %d", who, error_of(SYS_sched_get_priority_max));
	CHECK(prctl(PR_GET_SECCOMP) == SECCOMP_MODE_FILTER, "%s: mode %d", who, prctl(PR_GET_SECCOMP));
}

static void check_child(void *argument)
{
	static bool is_set;

	if (!is_set) {
		forbid(SYS_getuid, 73);
		is_set = true;
	}
	check_first_two("child");
	CHECK(error_of(SYS_getuid) == 73, "%d", error_of(SYS_getuid));
}

/* Threads: the filters were installed in one of them, so they have different chains. */
static sem_t checks[2], checked;

static void *other_thread(void *argument)
{
	long number = (long)argument;

	if (number == 1)
		forbid(SYS_getgid, 74);
	sem_post(&checked);
	for (;;) {
		while (sem_wait(&checks[number]) < 0)
			;
		check_first_two("thread");
		CHECK(error_of(SYS_getgid) == (number == 1 ? 74 : -1), "thread %ld: %d", number, error_of(SYS_getgid));
		sem_post(&checked);
	}
	return NULL;
}

/* Later a child without privileges whose threads have one chain; they try to add to it together. */
static void *plain_thread(void *argument)
{
	for (;;)
		pause();
	return NULL;
}

static void check_shared_chain(void *argument)
{
	struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog program = {1, allow};
	static bool is_set;
	pthread_t thread;

	if (!is_set) {
		MUST(setresuid(1001, 1001, 1001));
		MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		forbid(SYS_getegid, 75);
		MUST_ZERO(pthread_create(&thread, NULL, plain_thread, NULL));
		MUST_ZERO(pthread_create(&thread, NULL, plain_thread, NULL));
		is_set = true;
	}
	check_first_two("shared");
	CHECK(error_of(SYS_getegid) == 75);
	/* Works only while all threads have the same filter object. */
	long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
	CHECK(result == 0, "TSYNC: %ld", result);
}

/* Only read, write and exit are allowed: it answers requests. */
static void serve_strict(int request, int answer)
{
	char byte;

	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, NULL));
	while (syscall(SYS_write, answer, "y", 1) == 1 && syscall(SYS_read, request, &byte, 1) == 1)
		;
	syscall(SYS_exit, 0);
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

static void check_strict(int request, int answer)
{
	char byte = 0;

	CHECK(write(request, "x", 1) == 1 && read(answer, &byte, 1) == 1 && byte == 'y', "%m");
}

int main(void)
{
	int request[2], answer[2];
	char byte;
	pthread_t thread;

	if (geteuid() != 0)
		harness_skip("needs root");
	MUST(pipe(request));
	MUST(pipe(answer));
	if (MUST(fork()) == 0)
		serve_strict(request[0], answer[1]);
	close(answer[1]);
	MUST(read(answer[0], &byte, 1));
	forbid(SYS_getppid, 71);
	forbid(SYS_sched_get_priority_max, 72);
	harness_start_child(check_child, NULL);
	harness_start_child(check_shared_chain, NULL);
	harness_check_children();
	sem_init(&checked, 0, 0);
	for (long i = 0; i < 2; i++) {
		sem_init(&checks[i], 0, 0);
		MUST_ZERO(pthread_create(&thread, NULL, other_thread, (void *)i));
		wait_for(&checked);
	}
	/* No capability is left when the filters come back. */
	MUST(setresuid(1002, 1002, 1002));
	harness_ready();
	while (harness_wait_check()) {
		check_first_two("main");
		CHECK(error_of(SYS_getgid) == -1);
		CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
		for (int i = 0; i < 2; i++) {
			sem_post(&checks[i]);
			wait_for(&checked);
		}
		check_strict(request[1], answer[0]);
		harness_check_children();
		harness_report();
	}
	return 0;
}
