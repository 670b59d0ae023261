/* SPDX-License-Identifier: Apache-2.0 */
/* What every field of a message must be like; private to protocol.c, which calls it for each message it decodes. */
#pragma once

#include "migrate/protocol.h"

/* Returns 0 or a failure "protocol-message" that names message and field. */
int message_check(const struct message *message, struct failure *failure);
