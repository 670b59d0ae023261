/* SPDX-License-Identifier: Apache-2.0 */
/* Finds mappings with a NUMA policy of their own, and refuses them. */
#pragma once

#include "model/dump.h"

/* Room that the question needs in the leader's program. */
size_t memory_policies_program_bytes(struct dump *dump, const struct dump_task *task);
