/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands that speak to page servers, and those that are servers, have in common. */
#pragma once

#include "cmd/command.h"
#include "migrate/page_link.h"

/*
 * Certificates are loaded, so that a wrong one is told before anything is stopped or served. Strings stay those of the
 * command's options. page_link_options_free() frees the rest.
 * Returns 0 or a failure.
 */
int page_link_options_load(struct command *command, struct page_link_options *ret_link);
void page_link_options_free(struct page_link_options *link);
#define _cleanup_page_link_options_ __attribute__((cleanup(page_link_options_free)))
/*
 * Says that a server is ready: the zero byte of --status-fd, and, if @port was not asked for, its number on standard
 * output.
 */
void server_ready(const struct options *options, unsigned port);
/*
 * --daemon: forks; returns in the child, whose standard streams lead nowhere but for a log. The parent returns to the
 * shell when the child has called daemon_ready(), or fails when it ends before. Nothing is forked without --daemon.
 * --pidfile: writes the pid of the process that serves.
 * @ret_fd  for daemon_ready()
 * Returns 0 or a failure.
 */
int daemon_begin(struct command *command, int *ret_fd);
/* Lets the parent go. Closes @fd. */
void daemon_ready(int fd);
