/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What several kinds and stages ask /proc about each process: small texts, and the three links with the files behind
 * them. Opening such a file is most of what it costs (the kernel makes an inode for each), so all cores do it for the
 * whole tree at once.
 */
#pragma once

#include "model/dump.h"

enum process_text {
	PROCESS_AUXV,
	PROCESS_CONFINEMENT, /* attr/current */
	PROCESS_OOM_SCORE_ADJ,
	PROCESS_LOGINUID,
	PROCESS_COREDUMP_FILTER,
	PROCESS_TIMERS,
	PROCESS_AUTOGROUP, /* only of the first process of each session that began in the tree */
	PROCESS_TEXT_COUNT,
};

enum process_link { PROCESS_EXE, PROCESS_CWD, PROCESS_ROOT, PROCESS_LINK_COUNT };

/* What can be known of a file without opening it. */
struct process_link_fact {
	int error;    /* 0 or -errno */
	char *target; /* the text of the link */
	struct stat stat;
};

struct process_facts {
	struct {
		int error; /* 0 or -errno */
		char *text;
		size_t length;
	} texts[PROCESS_TEXT_COUNT];
	struct process_link_fact links[PROCESS_LINK_COUNT];
};

/* Reads them of all live processes of the frozen tree. Errors are left to who needs the fact. */
void process_facts_read(struct dump *dump);
/* Of one process; also if it has none. */
void process_facts_free(struct dump_task *task);
/* Gives a text away, once, to be freed by the caller; @ret_length may be NULL. Returns 0 or -errno. */
int process_facts_take(struct dump_task *task, enum process_text which, char **ret_text, size_t *ret_length);
