/* SPDX-License-Identifier: Apache-2.0 */
/* So many that criu reads locks and owners from the kernel's own structures. */
#define FILES 1200
#define LOCKS true
#include "file_owners.c"
