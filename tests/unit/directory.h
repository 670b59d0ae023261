/* SPDX-License-Identifier: Apache-2.0 */
/* A directory of its own for a test. */
#pragma once

enum { DIRECTORY_BYTES = 64 };

/* Makes one below $TMPDIR, which tests/run removes whatever becomes of the test, or /tmp. Exits without one. */
void directory_make(char path[DIRECTORY_BYTES]);
/* Removes it with all that is in it. */
void directory_remove(const char *path);
