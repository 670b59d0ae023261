/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which objects of the kernel threads use: two that use the same one share it. A BPF program reads their addresses for
 * all threads of a process at once. kcmp(2) compares two threads and one object in a call, some thirty calls for each
 * process of a large tree, and namespaces cost three calls each; both remain for where BPF may not be loaded.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct kernel_types;
struct task_objects_reader;

/* Addresses that say nothing but equal or not; all 0 = not known. */
struct task_objects {
	uint64_t memory;            /* struct mm_struct */
	uint64_t files;             /* struct files_struct: the descriptor table */
	uint64_t directories;       /* struct fs_struct: root, working directory, umask */
	uint64_t namespaces;        /* struct nsproxy: all but the next two */
	uint64_t user_namespace;    /* of the credentials */
	uint64_t process_namespace; /* the pid namespace that the thread itself is in */
	pid_t tid;                  /* in our pid namespace */
};

/*
 * Loads the program, about 1 ms. Returns NULL if this kernel, or what criu may do, does not allow it.
 * @types  the kernel's, or NULL: there are none
 */
struct task_objects_reader *task_objects_open(const struct kernel_types *types);
/* NULL is fine. */
void task_objects_close(struct task_objects_reader *reader);
/*
 * Those of the threads of a process that stands. From several threads at once.
 * @reader   NULL: nothing is found
 * @objects  receives them, in the kernel's order of threads
 * @room     the number of the process's threads
 * Returns how many were found; 0 also if they cannot be read.
 */
size_t task_objects_read(const struct task_objects_reader *reader, pid_t pid, struct task_objects *objects,
			 size_t room);
/* Whether two threads are in the same namespaces, one and all. False if that is not known. */
bool task_objects_same_namespaces(const struct task_objects *left, const struct task_objects *right);
