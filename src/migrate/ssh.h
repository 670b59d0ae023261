/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream through the user's ssh: a child `ssh HOST criu receive --stdio` whose standard input and output are the
 * stream. Keys, known hosts, jump hosts and multiplexing are those of the user's ssh_config.
 */
#pragma once

#include "base/fail.h"
#include "migrate/endpoint.h"

struct stream;

struct ssh_options {
	const char *program;          /* NULL = "ssh" */
	const char *remote_criu;      /* command on the other side; NULL = "criu" */
	const char *const *arguments; /* of `criu receive` there besides --stdio, NULL at the end; may be NULL */
};

/*
 * Starts ssh. That it can log in is known once something was read: a failure of ssh is then told by stream_fail().
 *
 * @join  hexadecimal id of the session that the stream is one more connection of; NULL = it is the first one.
 * Returns 0 or a failure.
 */
int ssh_open(const struct endpoint *endpoint, const struct ssh_options *options, const char *join,
	     struct failure *failure, struct stream **ret_stream);
