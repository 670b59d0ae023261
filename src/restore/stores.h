/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pages of a migrated tree, which arrived before the restore: in files in memory (restore_options.stores), or in
 * place already, in the process that becomes the root (restore_options.preload).
 */
#pragma once

#include "model/restore.h"

/* When all tasks are known, before any pagemap is read: their pages come from the stores. Returns 0 or a failure. */
int stores_add(struct restore *restore);
/* When all pagemaps are read: pages of the root that are in its memory come from there, in every task that has them. */
void stores_find_preloaded(struct restore *restore);
