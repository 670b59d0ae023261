/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the machine itself can do, for the ratios of the benchmark. Each prints nanoseconds, one line for each way:
 * which way is the best is for the caller to say, over many runs; the fastest of all would be luck.
 *
 *	limits copy MIB FILE [huge]   plain copies of that much memory of ours into a new file: one or two threads,
 *	                              blocks allocated in advance or not
 *	limits load MIB FILE [huge]   loads of a file into fresh memory with two threads, populated in advance or not
 *	limits tree MIB COUNT         that many processes over memory that fork shares: stopping and ending them (what a
 *	                              dump cannot do without), then making and stopping them (the same of a restore)
 *	limits warm MIB               touches that much memory, so that the host has given it to us
 *	limits run COMMAND…           wall time of a command, without any shell around it; exits with its status
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define HUGE_PAGE (2 * MIB)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

extern char **environ;

struct share {
	pthread_t thread;
	char *memory;
	size_t start, end;
	int fd;
	int populate;
};

static void die(const char *what)
{
	fprintf(stderr, "limits: %s: %m\n", what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static char *map(size_t bytes, int huge)
{
	char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("memory");
	memory = (char *)(((uintptr_t)memory + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return memory;
}

static void *write_share(void *argument)
{
	struct share *share = argument;

	for (size_t at = share->start; at < share->end; at += MIB)
		if (pwrite(share->fd, share->memory + at, MIB, at) != (ssize_t)MIB)
			die("pwrite");
	return NULL;
}

static void *read_share(void *argument)
{
	struct share *share = argument;

	for (size_t at = share->start; at < share->end; at += MIB) {
		if (share->populate)
			madvise(share->memory + at, MIB, MADV_POPULATE_WRITE);
		if (pread(share->fd, share->memory + at, MIB, at) != (ssize_t)MIB)
			die("pread");
	}
	return NULL;
}

static int64_t in_threads(int count, void *(*work)(void *), char *memory, size_t bytes, int fd, int populate)
{
	struct share shares[2];
	int64_t start = now_ns();

	for (int i = 0; i < count; i++) {
		shares[i] = (struct share){.memory = memory,
					   .start = bytes / MIB * i / count * MIB,
					   .end = bytes / MIB * (i + 1) / count * MIB,
					   .fd = fd,
					   .populate = populate};
		if ((errno = pthread_create(&shares[i].thread, NULL, work, &shares[i])))
			die("thread");
	}
	for (int i = 0; i < count; i++)
		pthread_join(shares[i].thread, NULL);
	return now_ns() - start;
}

/* Memory that lay free for some seconds has gone back to the host of a virtual machine. */
static void warm(size_t bytes)
{
	char *memory = map(bytes, 0);

	memset(memory, 1, bytes);
	munmap(memory, bytes);
}

static void print_copies(size_t bytes, const char *path, int huge)
{
	char *memory = map(bytes, huge);

	for (size_t i = 0; i < bytes / 8; i++)
		((uint64_t *)(void *)memory)[i] = i * 0x9e3779b97f4a7c15ULL;
	for (int way = 0; way < 4; way++) {
		int threads = 1 + way % 2, allocate = way / 2;
		unlink(path);
		/* A dump finds memory that was in use a moment ago as well: see gigabyte() in bench. */
		warm(bytes);
		int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
		if (fd < 0)
			die(path);
		int64_t start = now_ns();
		if (allocate && fallocate(fd, 0, 0, bytes) < 0) {
			close(fd);
			continue;
		}
		int64_t allocated = now_ns() - start;
		printf("%lld\n", (long long)(allocated + in_threads(threads, write_share, memory, bytes, fd, 0)));
		close(fd);
	}
}

static void print_loads(size_t bytes, const char *path, int huge)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		die(path);
	for (int populate = 0; populate <= !huge; populate++) {
		warm(bytes);
		char *memory = map(bytes, huge);
		printf("%lld\n", (long long)in_threads(2, read_share, memory, bytes, fd, populate));
		munmap(memory, bytes);
	}
}

static void fork_tree(pid_t *pids, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			die("fork");
		if (!pids[i])
			for (;;)
				pause();
	}
}

static void stop_tree(const pid_t *pids, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (ptrace(PTRACE_SEIZE, pids[i], 0, 0) < 0 || ptrace(PTRACE_INTERRUPT, pids[i], 0, 0) < 0)
			die("ptrace");
	for (size_t i = 0; i < count; i++)
		if (waitpid(pids[i], NULL, __WALL) < 0)
			die("waitpid");
}

static void end_tree(const pid_t *pids, size_t count)
{
	for (size_t i = 0; i < count; i++)
		kill(pids[i], SIGKILL);
	for (size_t i = 0; i < count; i++)
		if (waitpid(pids[i], NULL, __WALL) < 0)
			die("waitpid");
}

static void print_tree(size_t bytes, size_t count)
{
	pid_t *pids = calloc(count, sizeof(*pids));
	char *memory = map(bytes, 0);

	if (!pids)
		die("memory");
	memset(memory, 1, bytes);
	int64_t start = now_ns();
	fork_tree(pids, count);
	int64_t made = now_ns();
	stop_tree(pids, count);
	int64_t stopped = now_ns();
	end_tree(pids, count);
	printf("%lld\n%lld\n", (long long)(now_ns() - made), (long long)(stopped - start));
	free(pids);
}

static int run(char **command)
{
	int64_t start = now_ns();
	pid_t pid;
	int status;

	if ((errno = posix_spawnp(&pid, command[0], NULL, NULL, command, environ)))
		die(command[0]);
	if (waitpid(pid, &status, 0) < 0)
		die("waitpid");
	printf("%lld\n", (long long)(now_ns() - start));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 2 ? argv[1] : "";
	size_t bytes = argc > 2 ? strtoul(argv[2], NULL, 10) * MIB : 0;
	int huge = argc > 4 && !strcmp(argv[4], "huge");

	if (!strcmp(verb, "run"))
		return run(argv + 2);
	if (!strcmp(verb, "warm"))
		warm(bytes);
	else if (!strcmp(verb, "copy") && argc > 3)
		print_copies(bytes, argv[3], huge);
	else if (!strcmp(verb, "load") && argc > 3)
		print_loads(bytes, argv[3], huge);
	else if (!strcmp(verb, "tree") && argc > 3)
		print_tree(bytes, strtoul(argv[3], NULL, 10));
	else
		die("usage: limits copy|load|tree|warm|run …");
	return 0;
}
