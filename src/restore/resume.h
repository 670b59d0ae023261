/* SPDX-License-Identifier: Apache-2.0 */
/* From a tree whose threads wait in the interpreter to a tree that runs (restore/resume.c). In criu itself. */
#pragma once

#include "model/restore.h"

/* Seizes the leaders of all live tasks, so that they die with criu. Entry: BARRIER_FORKED. */
int resume_seize_leaders(struct restore *restore);
/* Looks after the processes while somebody waits: a failure if one has died. */
int resume_check_alive(struct restore *restore);
/* At the very end, when every thread is ready and stopped: a failure if somebody has ended one meanwhile. */
int resume_check_standing(struct restore *restore);
/* Waits for the notices of all threads and stops them. @notify_fd: criu's end. Returns 0 or a failure. */
int resume_gather(struct restore *restore, int notify_fd);
/* Last programs, state that is set from outside, stage and registers. Exit: every thread is ready to run. */
int resume_finish(struct restore *restore, int notify_fd);
/* Lets all threads go. */
void resume_release(struct restore *restore);
/* Ends every process of the restore and takes them in. Idempotent. */
void resume_kill(struct restore *restore, pid_t root_pid);
