/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says of an open file in /proc/self/fdinfo, for the kinds that have no other way to ask. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/dump.h"
#include "model/restore.h"

/*
 * The text for a descriptor of ours (the kernel writes it for the open file, so a copy's text says the same as the
 * original's). The caller frees *ret_text. Returns 0 or a failure.
 */
int fdinfo_read(struct dump *dump, int fd, char **ret_text);
/*
 * The number behind "name:" in base @base. The kernel writes it, so a missing one is a kernel too old or too new.
 * Returns 0 or a failure.
 */
int fdinfo_number(struct dump *dump, const char *text, const char *name, int base, uint64_t *ret_number);

/*
 * Sets the status flags of a restored descriptor (those that F_SETFL can change) to what the image says.
 * Returns 0 or a failure.
 */
int status_flags_restore(struct restore *restore, int fd, uint32_t flags);
