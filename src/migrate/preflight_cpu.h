/* SPDX-License-Identifier: Apache-2.0 */
/* Processor features that programs can use: what a tree may have noticed here must be there. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { CPU_WORD_COUNT = 8 };

struct cpu_features {
	uint64_t xfeatures;   /* XCR0: register sets that the kernel saves */
	uint32_t xsave_bytes; /* of the standard format with all of them */
	char vendor[16];
	uint32_t words[CPU_WORD_COUNT]; /* in the order of the table in preflight_cpu.c */
};

/* Asks this processor. In a virtual machine that costs some hundred microseconds. */
void cpu_features_read(struct cpu_features *ret_features);
/*
 * Names of what @needed has and @there has not, separated by blanks, cut to @size. Returns how many there are.
 */
size_t cpu_features_missing(const struct cpu_features *needed, const struct cpu_features *there, char *names,
			    size_t size);
