/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the other side of a row of dumps has of shared memory already: a hash of every page that was sent.
 *
 * No write tracking sees all writes to shared memory (kinds/mem/track.h says why), so its pages are read each time, by
 * all cores, and those whose hash has changed are sent. That takes about a tenth of what sending takes.
 * The tracker goes with the dumps of one tree in one criu, whose pages all go to the same sink.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <uthash.h>

struct dump;
struct page_hash;

/* One piece of shared memory. */
struct tracked_shmem {
	struct {
		uint64_t device, inode;
	} key;
	uint32_t id;              /* in the sink and in the images: the same in every dump of the row */
	char *name;               /* of a memfd; NULL = shared anonymous memory */
	bool sealable;            /* a memfd that allows seals */
	uint64_t bytes;           /* its size when it was looked at last */
	int fd;                   /* readable, while a pre-dump goes on; -1 */
	struct page_hash *hashes; /* of its pages; all zero = not sent */
	UT_hash_handle hh;
};

struct shmem_tracker;

struct shmem_tracker *shmem_tracker_new(void);
/* NULL is allowed. */
void shmem_tracker_free(struct shmem_tracker *tracker);
/* Finds or adds the shared memory that @stat is of; what was sent is forgotten if its size has changed. */
struct tracked_shmem *shmem_tracker_find(struct shmem_tracker *tracker, const struct stat *stat);
/* All of it, in the order in which it was found: for (…; one; one = one->hh.next). */
const struct tracked_shmem *shmem_tracker_first(const struct shmem_tracker *tracker);

/*
 * Notes that these pages (@data, at @offset, whole pages) are sent now, and tells which must be: calls @send for each
 * run that is not at the other side already. Several threads may do so at once, for different pages. Returns 0 or what
 * @send returned; then the row ends, for the hashes are ahead of what was sent.
 */
int shmem_tracker_send(struct tracked_shmem *shmem, uint64_t offset, const char *data, size_t bytes,
		       int (*send)(void *context, uint64_t offset, const char *data, size_t bytes), void *context);

/* ---- for a pre-dump, between the freeze and the pages; the tree may run ---- */

/* Looks for the shared memory that the tasks map, so that the sink can be told of it. What has gone is not found. */
void shmem_pre_dump_find(struct dump *dump);
/* Sends what has changed, and closes what was found. Returns 0 or a failure. */
int shmem_pre_dump_write(struct dump *dump);
