/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel has beside the open files of a process. Whether a file has locks is told by its fdinfo, 11 us each,
 * and who gets its signals by two calls; most files have neither. A BPF program tells that of a whole table at once.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct kernel_types;
struct file_objects_reader;

/* Of one descriptor. */
struct file_objects {
	int number;
	bool may_have_owner; /* somebody may get signals of it (F_SETOWN, F_SETSIG) */
	bool may_be_locked;  /* its inode has had a lock, or a lease, of anybody */
};

/*
 * Loads the program, about 1 ms. Returns NULL if this kernel, or what criu may do, does not allow it.
 * @types  the kernel's, or NULL: there are none
 */
struct file_objects_reader *file_objects_open(const struct kernel_types *types);
/* NULL is fine. */
void file_objects_close(struct file_objects_reader *reader);
/*
 * Those of the descriptors of a process that stands.
 * @reader   NULL: nothing is found
 * @objects  receives them, ascending
 * @room     how many there are
 * Returns how many were found; what was not found is not known.
 */
size_t file_objects_read(const struct file_objects_reader *reader, pid_t pid, struct file_objects *objects,
			 size_t room);
