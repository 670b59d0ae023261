/* SPDX-License-Identifier: Apache-2.0 */
/* The restore operations of terminals (kinds/fd/tty.c has the table row and the dump). */
#pragma once

#include "kinds/fd/fd_kind.h"

#define TTY_AUX_MAJOR 5
#define PTMX_MINOR 2
#define PTY_SLAVE_MAJOR 136

/* Ids in tty-info.img of what is no living pty: above all ids of those. */
#define TTY_ID_HUNG_UP 0x20000000u
#define TTY_ID_CONTROLLING 0x40000000u
#define TTY_ID_DEVICE 0x80000000u

int tty_prepare(struct restore *restore);
int tty_session_started(struct restore *restore);
int tty_open(struct restore *restore, struct restore_file *file, int *ret_fd);
int tty_finish(struct restore *restore, struct restore_file *file, int fd);
int tty_finish_task(struct restore *restore);
int tty_before_resume(struct restore *restore);
