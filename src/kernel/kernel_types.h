/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's own type information (BTF, /sys/kernel/btf/vmlinux; Documentation/bpf/btf.rst): ids of its functions and
 * offsets in its structures, for BPF programs. libbpf reads it too, but being linked with it costs every start of criu
 * a millisecond, a tenth of the dump of a small process.
 */
#pragma once

#include <stdint.h>

struct kernel_types;

/* Reads it: some 2 ms. Returns NULL, with a line in the log, if that fails: the kernel was built without. */
struct kernel_types *kernel_types_read(void);
/* NULL is fine. */
void kernel_types_free(struct kernel_types *types);
/* The id of a function; -ENOENT = there is none. */
int64_t kernel_types_find_function(const struct kernel_types *types, const char *name);
/*
 * Offset in bytes of a member of a structure, also one within a part without a name, or of a member of a member
 * ("one.two"); -ENOENT = there is none.
 */
int kernel_types_member(const struct kernel_types *types, const char *structure, const char *member);
