/* SPDX-License-Identifier: Apache-2.0 */
/* The options of SOL_SOCKET that every kind of socket carries in its image entry (sk_opts_entry). */
#pragma once

#include "model/dump.h"
#include "model/restore.h"

#include "fown.pb-c.h"
#include "sk-opts.pb-c.h"

/*
 * Reads the options of the socket @fd. An option that the socket's family does not have is left out of the entry.
 * *ret_options lives in dump->arena. Returns 0 or a failure (no object: the caller names the socket).
 */
int socket_options_dump(struct dump *dump, int fd, SkOptsEntry **ret_options);

/*
 * Gives @fd the options of an image; what it has already is not set again. Buffer sizes, mark and priority are best
 * effort (a warning in the log), because the kernel wants privileges in the socket's own network namespace for them.
 * Returns 0 or a failure (no object: the caller names the file).
 */
int socket_options_restore(struct restore *restore, int fd, const SkOptsEntry *options);

/*
 * Who sends with SO_PASSCRED or SO_PASSPIDFD may get a name that the program never bound (autobind). Turns them off and
 * returns which were on.
 */
unsigned socket_credentials_suspend(int fd);
/* Gives back what socket_credentials_suspend() returned. */
void socket_credentials_resume(int fd, unsigned suspended);
