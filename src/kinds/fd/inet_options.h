/* SPDX-License-Identifier: Apache-2.0 */
/* Options of internet sockets at the levels of IP, IPv6, TCP and UDP. */
#pragma once

#include "base/arena.h"
#include "base/fail.h"

#include "sk-inet.pb-c.h"

/*
 * Reads the options of the socket into @entry, whose family, type and proto are set; parts lie in @arena.
 * @with_extensions: also those that CRIU's format has no field for. Returns 0 or a failure without an object.
 */
int inet_options_dump(struct failure *failure, struct arena *arena, int fd, bool with_extensions, InetSkEntry *entry);
/* Options that change what bind() and connect() do: before them. Returns 0 or a failure. */
int inet_options_restore_early(struct failure *failure, int fd, const InetSkEntry *entry);
/* The others; the socket is bound and connected. Returns 0 or a failure. */
int inet_options_restore(struct failure *failure, int fd, const InetSkEntry *entry);
