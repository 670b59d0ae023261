/* SPDX-License-Identifier: Apache-2.0 */
/* What the running kernel can do for criu, found out by trying. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* One row of features.c for each, in this order. */
enum kernel_feature {
	FEATURE_PTRACE_SEIZE,
	FEATURE_PIDFD_OPEN,
	FEATURE_PIDFD_GETFD,
	FEATURE_CLONE3_SET_TID,
	FEATURE_KCMP,
	FEATURE_KCMP_EPOLL,
	FEATURE_SET_MM_MAP,
	FEATURE_PAGEMAP_SCAN,
	FEATURE_PAGEMAP_PFN,
	FEATURE_TCP_REPAIR,
	FEATURE_UNIX_PEEK_OFFSET,
	FEATURE_SOCK_DIAG,
	FEATURE_NFTABLES,
	FEATURE_SECCOMP_SUSPEND,
	FEATURE_SECCOMP_FILTERS,
	FEATURE_RSEQ_CONFIGURATION,
	FEATURE_TIMER_RESTORE_IDS,
	FEATURE_TIME_NAMESPACE,
	FEATURE_USERFAULTFD,
	FEATURE_UFFD_NONCOOP,
	FEATURE_WRITE_TRACKING,
	FEATURE_SOFT_DIRTY,
	FEATURE_GUARD_PAGES,
	FEATURE_TIMERFD_TICKS,
	FEATURE_SYS_RESOURCE,
	FEATURE_COUNT,
};

struct kernel_features {
	bool has[FEATURE_COUNT];
};

struct feature_description {
	const char *name;    /* for --feature */
	const char *purpose; /* what criu does with it */
	bool required;       /* dump and restore do not work without it */
};

extern const struct feature_description feature_descriptions[FEATURE_COUNT];

/* Tries everything; takes a few milliseconds and leaves nothing behind. */
void kernel_features_probe(struct kernel_features *ret_features);
/* Tries one thing. */
bool kernel_feature_probe(enum kernel_feature feature);
