/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flags of mappings without /proc/PID/smaps, which walks all page tables for its counts (11 ms a GiB in small
 * pages): a BPF program reads them from the kernel's own structures (bpf_iter, Linux 6.1).
 *
 * The bits of vm_flags are no interface. What they mean is learnt by comparison: each value that smaps has been seen
 * to write out means the same in every mapping, and a bit that makes the one difference between two such values means
 * what they differ in. A process with a mapping that is not understood is read from smaps, and adds to what is known.
 */
#pragma once

#include <sys/types.h>

#include "kernel/maps.h"

struct kernel_types;
struct vm_flags_reader;

/*
 * Loads the program and learns from our own mappings: some 10 ms, so before anything is stopped, and only for trees
 * with much memory. Returns NULL if this kernel, or what criu may do, does not allow it: then smaps is what there is.
 * @types  the kernel's, or NULL: there are none
 */
struct vm_flags_reader *vm_flags_open(const struct kernel_types *types);
/* NULL is fine. */
void vm_flags_close(struct vm_flags_reader *reader);
/*
 * As mappings_read(), which it is without a reader. From several threads at once.
 * @proc_dirfd  /proc/@pid
 * @stands      the process cannot run: it may teach
 * Returns 0 or -errno; the caller frees with mappings_free().
 */
int vm_flags_mappings_read(struct vm_flags_reader *reader, pid_t pid, int proc_dirfd, bool stands,
			   struct mappings *ret_mappings);
/* How often smaps had to be read after all. For tests and the log. */
unsigned vm_flags_fallbacks(const struct vm_flags_reader *reader);
