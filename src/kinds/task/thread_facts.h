/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What /proc says of each thread: its status and its namespaces. Reading that is most of what a thread costs, so all
 * cores do it for the whole tree before the kinds look at one thread after the other.
 */
#pragma once

#include "kernel/task_objects.h"
#include "model/dump.h"

enum { THREAD_NAMESPACE_COUNT = 7 };

/*
 * A thread can leave some of its process's namespaces. Leaving the mounts means leaving the working directory of the
 * others too, which is looked at anyway.
 */
extern const struct thread_namespace {
	const char *name, *what;
	bool per_thread;       /* else only read of leaders */
	unsigned long request; /* of ioctl() on a pidfd */
} thread_namespaces[THREAD_NAMESPACE_COUNT];

struct thread_facts {
	char *status;                                /* the text, owned; NULL when it was taken */
	int status_error, namespace_error;           /* 0 or -errno */
	uint64_t namespaces[THREAD_NAMESPACE_COUNT]; /* inodes; 0 = not read, or the kernel has no such kind */
	uint64_t time_for_children;                  /* the same */
	uint64_t time;                               /* the same; only read of leaders */
	struct task_objects objects;                 /* all 0 = not known */
};

/* Reads them of all threads of the frozen tree. Errors are left to who needs the fact. */
void thread_facts_read(struct dump *dump);
/* Reads the status of each process's leader anew (thread_status_refresh()), and nothing else. */
void thread_facts_read_statuses(struct dump *dump);
/* The texts that nobody took. */
void thread_facts_release(struct dump *dump);
/* The namespaces of criu itself. Returns 0 or -errno. */
int thread_facts_own_namespaces(uint64_t ret_inodes[THREAD_NAMESPACE_COUNT]);
