/* SPDX-License-Identifier: Apache-2.0 */
/* The stages of a dump, in order; dump.c runs them, each file holds one and says what holds on entry and exit. */
#pragma once

#include "model/dump.h"

struct proc_stat;

/* Marks the begin of what follows: for the log, and for tests that let criu die here. */
void dump_stage(struct dump *dump, const char *name);
/* The signals that ask criu to end are blocked. Returns a failure if one has come, or 0. */
int dump_check_interrupted(struct failure *failure);

/*
 * Every thread of every live task of the tree is seized and stopped, none is missing. On failure all are let go.
 * Entry: nothing touched.
 */
int freeze_tree(struct dump *dump);
/* Lets every seized thread go on (or stay stopped, as it was). Idempotent. */
void thaw_tree(struct dump *dump);
/* What /proc and ptrace tell from outside. Entry: frozen. */
int collect_tree(struct dump *dump);
/* The borders of code, data, heap, stack and arguments. Where the heap ends only the task itself knows. */
void collect_borders(MmEntry *mm, const struct proc_stat *stat);
/* Puts the interpreter into each process, runs the inspection programs. Entry: collected. Exit: injected. */
int inspect_tree(struct dump *dump);
/* Makes userfaultfds in the tasks that the tracker does not know yet, and nothing else. Entry: frozen, mappings known.
 */
int inject_trackers(struct dump *dump);
/* Takes the interpreter out again. Idempotent; also after failures. */
int release_injections(struct dump *dump);
/* Descriptor tables to open files (dump/files.c). Entry: inspected (close-on-exec flags are known). */
int dump_files(struct dump *dump);
int finish_files(struct dump *dump);
/* Undoes what the kinds changed outside (network lock, repair mode). Idempotent. */
void release_files(struct dump *dump, bool tree_is_gone);
/* Frees the tables of open files; their entries live in the arena. */
void free_files(struct dump *dump);
/* The small images: inventory, pstree, core, ids, fs, mm, fdinfo, files, stats. Entry: everything is in memory. */
int write_images(struct dump *dump);
/* Those that a pre-dump leaves: mm, pstree, inventory. */
int write_pre_dump_images(struct dump *dump);
/*
 * The two halves of a pre-dump (dump/pre_dump.c): the first lists and arms the pages while the tree stands, the second
 * reads them while it runs.
 */
int pre_dump_frozen(struct dump *dump);
int pre_dump_running(struct dump *dump);
