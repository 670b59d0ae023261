/* SPDX-License-Identifier: Apache-2.0 */
/* Finds breakpoints that the kernel has put into the code of a task (uprobes), and refuses them. */
#pragma once

#include "model/dump.h"

/* Entry: the pages of all tasks are known. Returns 0 or a failure. */
int traced_code_refuse(struct dump *dump);
