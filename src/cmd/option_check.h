/* SPDX-License-Identifier: Apache-2.0 */
/* Options that would have no effect are refused. */
#pragma once

#include "cmd/options.h"
#include "cmd/verbs.h"

/*
 * Fails, with what to do about it, when an option of the command line does nothing: because the verb does not know it,
 * or because of what else is given or not given. Options that ask for what happens anyway pass.
 * Returns 0 or a failure.
 */
int options_check(const struct options *options, const struct verb *verb, struct failure *failure);
