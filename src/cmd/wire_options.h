/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "cmd/options.h"
#include "migrate/session.h"

/* What the command line says about the connections of a migration, of both sides. Strings stay those of @options. */
void wire_options_fill(const struct options *options, struct wire_options *ret_wire);
