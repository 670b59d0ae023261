/* SPDX-License-Identifier: Apache-2.0 */
/*
 * big_tree WIDE DEEP: a root with WIDE children and a chain of DEEP processes, each the parent of the next. There are
 * sessions and groups of their own in it, and processes with a zombie. Each has memory of its own, looks at its place
 * and at every byte of that memory when it is asked to, collects its zombie, and makes both anew.
 */
#include "../../kinds/harness.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS_MAX = 4096, MEMORY_BYTES = 64 << 10 };

/* In memory that all share. */
struct member {
	sem_t request;
	char fault[128]; /* what the last look has found; "" = nothing */
};

struct tree {
	sem_t answers;
	struct member members[MEMBERS_MAX];
};

struct place {
	pid_t pid, parent, group, session;
};

static struct tree *tree;
static int wide, deep;

static struct place here(void)
{
	return (struct place){getpid(), getppid(), getpgid(0), getsid(0)};
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0 && errno == EINTR)
		;
}

static unsigned char expected_byte(int index, int generation, size_t at)
{
	return (unsigned char)(index * 31 + generation * 7 + (int)(at >> 12) + (int)at);
}

static void fill(unsigned char *memory, int index, int generation)
{
	for (size_t at = 0; at < MEMORY_BYTES; at++)
		memory[at] = expected_byte(index, generation, at);
}

static void look_at_memory(const unsigned char *memory, int index, int generation)
{
	for (size_t at = 0; at < MEMORY_BYTES; at++)
		if (memory[at] != expected_byte(index, generation, at)) {
			snprintf(tree->members[index].fault, sizeof(tree->members[index].fault),
				 "byte %zu is %u, was %u", at, memory[at], expected_byte(index, generation, at));
			return;
		}
}

static bool has_zombie(int index)
{
	return index % 5 == 2;
}

static pid_t new_zombie(int index)
{
	siginfo_t information;
	pid_t pid = fork();

	if (pid == 0)
		_exit(index & 127);
	waitid(P_PID, (id_t)pid, &information, WEXITED | WNOWAIT);
	return pid;
}

static void collect_zombie(pid_t pid, int index)
{
	int status = 0;

	if (waitpid(pid, &status, WNOHANG) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != (index & 127))
		snprintf(tree->members[index].fault, sizeof(tree->members[index].fault), "zombie %d has status %x", pid,
			 status);
}

static void take_place(int index)
{
	if (index % 5 == 0)
		setsid();
	else if (index % 5 == 1)
		setpgid(0, 0);
}

/* The life of a member. Never returns. */
static void stay(int index)
{
	struct member *member = &tree->members[index];
	unsigned char *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t zombie = has_zombie(index) ? new_zombie(index) : 0;
	struct place place = here();

	for (int generation = 0;; generation++) {
		fill(memory, index, generation);
		sem_post(&tree->answers);
		wait_for(&member->request);
		struct place now = here();
		if (memcmp(&place, &now, sizeof(place)))
			snprintf(member->fault, sizeof(member->fault),
				 "pid %d parent %d group %d session %d, was %d %d %d %d", now.pid, now.parent,
				 now.group, now.session, place.pid, place.parent, place.group, place.session);
		look_at_memory(memory, index, generation);
		if (zombie) {
			collect_zombie(zombie, index);
			zombie = new_zombie(index);
		}
	}
}

static void start_chain(int depth)
{
	if (depth == deep || MUST(fork()))
		return;
	take_place(wide + depth);
	start_chain(depth + 1);
	stay(wide + depth);
}

static void start_all(void)
{
	for (int i = 0; i < wide; i++)
		if (!MUST(fork())) {
			take_place(i);
			stay(i);
		}
	start_chain(0);
}

static void wait_for_all(void)
{
	for (int i = 0; i < wide + deep; i++)
		wait_for(&tree->answers);
}

int main(int argc, char **argv)
{
	wide = argc > 1 ? atoi(argv[1]) : 0;
	deep = argc > 2 ? atoi(argv[2]) : 0;
	if (wide + deep > MEMBERS_MAX)
		harness_skip("at most %d processes", MEMBERS_MAX);
	tree = MUST(mmap(NULL, sizeof(*tree), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	sem_init(&tree->answers, 1, 0);
	for (int i = 0; i < wide + deep; i++)
		sem_init(&tree->members[i].request, 1, 0);
	start_all();
	wait_for_all();
	harness_ready();
	while (harness_wait_check()) {
		for (int i = 0; i < wide + deep; i++)
			sem_post(&tree->members[i].request);
		wait_for_all();
		for (int i = 0; i < wide + deep; i++)
			CHECK(!tree->members[i].fault[0], "process %d: %s", i, tree->members[i].fault);
		harness_report();
	}
	return 0;
}
