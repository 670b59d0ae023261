/* SPDX-License-Identifier: Apache-2.0 */
/* What UDP sockets have besides names and options: unread datagrams, a closed sending half, multicast groups. */
#pragma once

#include "kinds/fd/fd_kind.h"

#include "sk-inet.pb-c.h"

/* Reads it into @entry, whose names, family and protocol are set. Returns 0 or a failure without an object. */
int udp_dump(struct dump *dump, int fd, InetSkEntry *entry);
/* Are these parts of @entry in range? Returns NULL, or what is not. */
const char *udp_wrong_part(const InetSkEntry *entry);
/* Before bind(): brings the unread datagrams into the queue of @fd again. What cannot be had is told in the log. */
void udp_fill_queue(const InetSkEntry *entry, int fd);

/* ---- udp_multicast.c ---- */

int udp_dump_multicast(struct dump *dump, int fd, InetSkEntry *entry);
const char *udp_wrong_membership(const InetSkEntry *entry);
/* Joins the groups again. Returns 0 or a failure. */
int udp_restore_multicast(struct restore *restore, const InetSkEntry *entry, int fd);
