/* SPDX-License-Identifier: Apache-2.0 */
/* What a directory of images holds, for people. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "base/fail.h"

enum images_part { IMAGES_PROCESSES, IMAGES_FILES, IMAGES_MAPPINGS, IMAGES_PAGES };

/*
 * Writes the tree of processes, memory and open files of the dump in @dirfd to @out; with @as_json one JSON object of
 * the same. Images that a dump need not have (pages of a zombie) may be absent. Returns 0 or a failure, before any
 * output.
 */
int images_show(int dirfd, bool as_json, FILE *out, struct failure *failure);
/* One part of it as text. */
int images_show_part(int dirfd, enum images_part part, FILE *out, struct failure *failure);
