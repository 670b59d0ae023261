/* SPDX-License-Identifier: Apache-2.0 */
/* Readers of /proc/PID. They know the kernel's text formats and nothing of images or policy. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* /proc/PID/stat or /proc/PID/task/TID/stat; addresses are 0 without the right to ptrace the task. */
struct proc_stat {
	pid_t pid, ppid, pgrp, session;
	char comm[65];
	char state;     /* R S D T t Z X … */
	uint32_t flags; /* PF_* of the kernel */
	uint32_t thread_count;
	uint64_t resident_pages;
	uint64_t start_time; /* clock ticks since boot */
	uint64_t start_code, end_code, start_stack;
	uint64_t start_data, end_data, start_brk;
	uint64_t arg_start, arg_end, env_start, env_end;
	int exit_code; /* wait status */
};

/* Opens /proc/PID. Returns a descriptor or -errno (-ESRCH if there is no such process). */
int proc_open(pid_t pid);
/* Reads and parses @path ("stat", "task/12/stat") below /proc/PID. Returns 0 or -errno (-ESRCH: it is gone). */
int proc_read_stat(int proc_dirfd, const char *path, struct proc_stat *ret_stat);
/*
 * The whole of a small file of /proc, with a NUL behind it, to be freed: one read, as the kernel cuts its answers only
 * when they come near a page. Larger ones are read anew. @ret_length may be NULL. Returns 0 or -errno.
 */
int proc_read_text(int dirfd, const char *path, char **ret_text, size_t *ret_length);
/*
 * Waits until a thread that was let go within a group stop stands in it: it must have the processor once more for that.
 * Gives up after a tenth of a second, or when it is traced or has ended. Returns its state, 'X' if it is gone.
 */
char proc_await_stop(pid_t pid, pid_t tid);
/*
 * The numeric names in a directory of /proc/PID ("task", "fd") in ascending order; the caller frees *ret_numbers.
 * Returns 0 or -errno.
 */
int proc_list_numbers(int proc_dirfd, const char *path, int **ret_numbers, size_t *ret_count);
/* Appends the children of one thread to *children. Returns 0 or -errno. */
int proc_read_children(int proc_dirfd, pid_t tid, pid_t **children, size_t *count, size_t *capacity);
/* Memory and swap that the machine has left for new pages (/proc/meminfo); UINT64_MAX = that cannot be told. */
uint64_t proc_free_memory_bytes(void);
/*
 * The value of a "Name:\tvalue" line in the text of a status or fdinfo file; NULL if there is none. The pointer is
 * into @text, behind the blanks.
 */
const char *proc_field(const char *text, const char *name);
