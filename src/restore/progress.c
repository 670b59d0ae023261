/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/progress.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "base/log.h"
#include "restore/memory.h"

enum { PAGE_BYTES = 4096 };

struct restore_progress {
	_Atomic uint64_t expected, done, restored, compared, compared_equal; /* pages */
};

int progress_create(struct restore *restore)
{
	void *memory =
		mmap(NULL, sizeof(*restore->progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return fail_errno(&restore->failure, errno, "restore-shared", NULL, NULL, "cannot map shared memory");
	restore->progress = memory;
	return 0;
}

void progress_free(struct restore *restore)
{
	if (restore->progress)
		munmap(restore->progress, sizeof(*restore->progress));
}

static void tell(const struct restore *restore, uint64_t done_bytes, uint64_t total_bytes)
{
	const struct progress progress = {restore->stage_name, done_bytes, total_bytes};

	if (restore->options->progress)
		restore->options->progress(restore->options->context, &progress);
}

void progress_stage(struct restore *restore, const char *name)
{
	log_debug("stage %s", name);
	restore->stage_name = name;
	tell(restore, 0, 0);
}

void progress_report(struct restore *restore)
{
	const struct restore_progress *pages = restore->progress;

	tell(restore, atomic_load(&pages->done) * PAGE_BYTES, atomic_load(&pages->expected) * PAGE_BYTES);
}

void progress_plan(struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++)
		if (restore->tasks[i]->memory)
			restore_expect_pages(restore, restore->tasks[i]->memory->places->own_pages);
}

void progress_collect(struct restore *restore)
{
	const struct restore_progress *pages = restore->progress;

	restore->stats.pages_restored = atomic_load(&pages->restored);
	restore->stats.pages_compared = atomic_load(&pages->compared);
	restore->stats.pages_skipped_cow = atomic_load(&pages->compared_equal);
	restore->stats.has_pages_restored = true;
}

void restore_expect_pages(struct restore *restore, uint64_t pages)
{
	atomic_fetch_add(&restore->progress->expected, pages);
}

void restore_count_pages(struct restore *restore, const struct restore_page_counts *counts)
{
	struct restore_progress *pages = restore->progress;

	atomic_fetch_add(&pages->done, counts->restored + counts->compared_equal);
	atomic_fetch_add(&pages->restored, counts->restored);
	atomic_fetch_add(&pages->compared, counts->compared);
	atomic_fetch_add(&pages->compared_equal, counts->compared_equal);
	/* criu itself loads what no single task owns. */
	if (!restore->self)
		progress_report(restore);
}
