/* SPDX-License-Identifier: Apache-2.0 */
/* The values that options take: one function for each word in the `store` column of options.def. */
#pragma once

#include "cmd/options.h"

#define OPTION_STORE(name)                                                                                      \
	int store_##name(struct options *options, const struct option_row *row, void *field, const char *value, \
			 struct failure *failure)

OPTION_STORE(flag);          /* bool */
OPTION_STORE(text);          /* const char * */
OPTION_STORE(list);          /* struct text_list */
OPTION_STORE(pid);           /* pid_t */
OPTION_STORE(seconds);       /* unsigned */
OPTION_STORE(size);          /* uint64_t, bytes, suffix K, M, G */
OPTION_STORE(verbosity);     /* int, enum log_level */
OPTION_STORE(close_fd);      /* int array and its count */
OPTION_STORE(port);          /* unsigned */
OPTION_STORE(descriptor);    /* int */
OPTION_STORE(network_lock);  /* enum network_lock_method */
OPTION_STORE(milliseconds);  /* unsigned */
OPTION_STORE(link_seconds);  /* unsigned */
OPTION_STORE(connections);   /* unsigned */
OPTION_STORE(at_timeout);    /* enum migrate_at_timeout */
OPTION_STORE(compress);      /* int, enum compress_mode */
OPTION_STORE(pre_dump_mode); /* enum pre_dump_mode */
OPTION_STORE(format);        /* bool format_plain */
OPTION_STORE(cgroups);       /* options with some values that come later */
OPTION_STORE(cpu_cap);
OPTION_STORE(file_validation);

/* Decimal number from 0 to @maximum without sign, spaces or anything behind it. Returns 0 or -EINVAL. */
int parse_number(const char *text, uint64_t maximum, uint64_t *ret_number);
/* A number with an optional suffix K, M, G or T (powers of 1024). Returns 0 or -EINVAL. */
int parse_size(const char *text, uint64_t *ret_bytes);
