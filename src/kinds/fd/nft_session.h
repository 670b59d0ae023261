/* SPDX-License-Identifier: Apache-2.0 */
/* libnftables in a thread of its own, with a descriptor table and a network namespace of its own. */
#pragma once

#include <stdbool.h>

#include "base/fail.h"

struct nft_session;

/*
 * Opens a session. @netns_fd: the network namespace, or -1 for that of this process. Tables that it owns go away with
 * it, or with this process. Returns 0 or a failure.
 */
int nft_session_open(struct failure *failure, int netns_fd, struct nft_session **ret_session);
/*
 * Runs commands as one transaction. @check_only: the kernel looks at them and changes nothing. Returns 0, or -EIO;
 * the reason is nft_session_error().
 */
int nft_session_run(struct nft_session *session, const char *commands, bool check_only);
/* What the last commands printed, and why they failed, in one line. Valid until the next call. */
const char *nft_session_output(const struct nft_session *session);
const char *nft_session_error(const struct nft_session *session);
/* Closes and frees it; nothing happens to NULL. When it returns, the tables that the session owned are gone. */
void nft_session_close(struct nft_session *session);
/*
 * The same in the background: the kernel lets whoever closes wait for all processors (RCU), some 20 ms. For a session
 * that owns no table, or has deleted it.
 */
void nft_session_leave(struct nft_session *session);
