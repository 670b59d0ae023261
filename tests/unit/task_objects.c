/* SPDX-License-Identifier: Apache-2.0 */
/* What the BPF program says of threads is what kcmp(2) and /proc say. */
#include "kernel/task_objects.h"

#include <linux/kcmp.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "kernel/kernel_types.h"
#include "kernel/proc.h"
#include "unit.h"

enum { STACK_BYTES = 64 * 1024, THREADS = 40, MOST_THREADS = THREADS + 8 };

/* What a child shares with us, or has of its own. */
static const int ways[] = {
	0,
	CLONE_VM,
	CLONE_FILES,
	CLONE_FS,
	CLONE_VM | CLONE_FILES | CLONE_FS,
	CLONE_NEWUTS,
	CLONE_NEWIPC,
	CLONE_NEWUSER,
	CLONE_NEWPID,
	CLONE_NEWUSER | CLONE_NEWPID,
};

static int wait_for_end(void *argument)
{
	for (;;)
		pause();
	return 0;
}

static pid_t start(int flags, int (*run)(void *argument))
{
	char *stack = malloc(STACK_BYTES); /* stays: it may be the child's too */

	return clone(run, stack + STACK_BYTES, flags | SIGCHLD, NULL);
}

static struct task_objects_reader *open_reader(void)
{
	struct kernel_types *types = kernel_types_read();
	struct task_objects_reader *reader = task_objects_open(types);

	kernel_types_free(types);
	return reader;
}

static bool same_by_kcmp(pid_t left, pid_t right, int type)
{
	long order = syscall(SYS_kcmp, left, right, type, 0, 0);

	assert_true(order >= 0);
	return !order;
}

static bool same_namespaces_by_link(pid_t left, pid_t right)
{
	static const char *const names[] = {
		"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time", "time_for_children"};
	char path[64];
	struct stat one, other;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", left, names[i]);
		assert_int_equal(stat(path, &one), 0);
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", right, names[i]);
		assert_int_equal(stat(path, &other), 0);
		if (one.st_ino != other.st_ino)
			return false;
	}
	return true;
}

static void compare(const struct task_objects *left, const struct task_objects *right)
{
	assert_int_equal(left->memory == right->memory, same_by_kcmp(left->tid, right->tid, KCMP_VM));
	assert_int_equal(left->files == right->files, same_by_kcmp(left->tid, right->tid, KCMP_FILES));
	assert_int_equal(left->directories == right->directories, same_by_kcmp(left->tid, right->tid, KCMP_FS));
	assert_int_equal(task_objects_same_namespaces(left, right), same_namespaces_by_link(left->tid, right->tid));
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void test_processes(void **state)
{
	struct task_objects_reader *reader = open_reader();
	struct task_objects found[ARRAY_SIZE(ways) + 1];
	pid_t pids[ARRAY_SIZE(ways)];

	if (!reader)
		skip(); /* not on this kernel, or not for this user */
	assert_int_equal(task_objects_read(reader, getpid(), &found[ARRAY_SIZE(ways)], 1), 1);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		pids[i] = start(ways[i], wait_for_end);
		assert_true(pids[i] > 0);
		assert_int_equal(task_objects_read(reader, pids[i], &found[i], 1), 1);
		assert_int_equal(found[i].tid, pids[i]);
	}
	for (size_t i = 0; i <= ARRAY_SIZE(ways); i++)
		for (size_t other = 0; other < i; other++)
			compare(&found[i], &found[other]);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		end(pids[i]);
	task_objects_close(reader);
}

struct thread {
	pthread_t thread;
	bool apart; /* has left the files and the directory */
	pid_t tid;
	sem_t *ready;
};

static void *run_thread(void *argument)
{
	struct thread *thread = argument;

	if (thread->apart && unshare(CLONE_FILES | CLONE_FS | CLONE_NEWUTS) < 0)
		abort();
	thread->tid = gettid();
	sem_post(thread->ready);
	for (;;)
		pause();
	return NULL;
}

static void test_threads(void **state)
{
	struct task_objects_reader *reader = open_reader();
	struct task_objects found[MOST_THREADS];
	struct thread threads[THREADS];
	sem_t ready;

	if (!reader)
		skip();
	sem_init(&ready, 0, 0);
	for (size_t i = 0; i < THREADS; i++) {
		threads[i] = (struct thread){.apart = i % 3 == 0, .ready = &ready};
		pthread_create(&threads[i].thread, NULL, run_thread, &threads[i]);
		while (sem_wait(&ready) < 0)
			;
	}
	assert_int_equal(task_objects_read(reader, getpid(), found, MOST_THREADS), THREADS + 1);
	assert_int_equal(found[0].tid, getpid());
	for (size_t i = 0; i < THREADS; i++) {
		assert_int_equal(found[i + 1].tid, threads[i].tid);
		compare(&found[i + 1], &found[0]);
	}
	/* No more than asked for. */
	assert_int_equal(task_objects_read(reader, getpid(), found, 5), 5);
	for (size_t i = 0; i < THREADS; i++) {
		pthread_cancel(threads[i].thread);
		pthread_join(threads[i].thread, NULL);
	}
	task_objects_close(reader);
}

static int read_in_own_namespace(void *argument)
{
	struct task_objects_reader *reader = open_reader();
	struct task_objects found, other;
	pid_t pid = start(0, wait_for_end);

	if (!reader)
		return 2;
	bool good = task_objects_read(reader, getpid(), &found, 1) == 1 && found.tid == 1 &&
		    task_objects_read(reader, pid, &other, 1) == 1 && other.tid == pid &&
		    task_objects_same_namespaces(&found, &other) && found.memory != other.memory;
	task_objects_close(reader);
	end(pid);
	return good ? 0 : 1;
}

/* Numbers and namespaces are those that the reader sees. */
static void test_within_pid_namespace(void **state)
{
	struct task_objects_reader *reader = open_reader();
	int status;

	if (!reader)
		skip();
	task_objects_close(reader);
	pid_t pid = start(CLONE_NEWPID, read_in_own_namespace);
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_without_a_reader(void **state)
{
	struct task_objects none = {}, found;

	assert_null(task_objects_open(NULL));
	assert_int_equal(task_objects_read(NULL, getpid(), &found, 1), 0);
	assert_false(task_objects_same_namespaces(&none, &none));
}

static void test_process_that_is_gone(void **state)
{
	struct task_objects_reader *reader = open_reader();
	struct task_objects found;

	if (!reader)
		skip();
	pid_t pid = start(0, wait_for_end);
	end(pid);
	assert_int_equal(task_objects_read(reader, pid, &found, 1), 0);
	task_objects_close(reader);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_processes),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_within_pid_namespace),
		cmocka_unit_test(test_process_that_is_gone),
		cmocka_unit_test(test_without_a_reader),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
