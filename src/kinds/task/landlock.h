/* SPDX-License-Identifier: Apache-2.0 */
/* Finds threads in a landlock domain of their own (landlock(7)), and refuses them. */
#pragma once

#include "model/dump.h"

/* Before the freeze: most trees are of the user of their root, for which what is needed is made already. */
void landlock_begin(struct dump *dump);
/* Takes away what was needed to find out. When all threads have been inspected, or none will be. */
void landlock_end(struct dump *dump);
