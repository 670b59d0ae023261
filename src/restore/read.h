/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "model/restore.h"

/* Reads and checks all images into @restore; nothing is made yet. Returns 0 or a failure. */
int read_images(struct restore *restore);
