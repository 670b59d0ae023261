/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Write tracking with userfaultfd in WP_ASYNC mode.
 *
 * The kernel write-protects pages that are armed, resolves the fault of the first write to each by itself and marks
 * the page as written; PAGEMAP_SCAN reads the marks and arms again in one step (page_scan.c). A userfaultfd is bound
 * to the address space that has made it, so it is made in the task and taken out of it; all else is done from
 * outside. As long as somebody holds it, the memory stays armed.
 *
 * What a mark does not mean, each of which would let a page of the parent images come back to life:
 * - A mapping that is new, was moved (mremap) or came with a fork is not registered: its pages are dumped in full and
 *   armed. tracker_check() makes sure that the kernel takes the marks away when memory moves.
 * - mremap() that moves memory next to a registered mapping makes one mapping of both, and the kernel ends the
 *   registration of all of it while the marks of the neighbour's pages stay: they are not cleared by writes any more.
 *   Marks in memory that is not registered are therefore taken away before they are asked (find_stale_marks).
 * - After MADV_DONTNEED on armed private pages of a file a marker is left that looks like a swapped page that was not
 *   written. page_scan.c looks twice at swapped pages.
 * - Memory that is shared can be written through other mappings and by write(2). It is never registered.
 * - Mappings that belong to another userfaultfd stay untracked.
 */
#include "kinds/mem/track.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/log.h"
#include "inject/injection.h"
#include "kernel/proc.h"
#include "kernel/uapi.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/memory.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

enum {
	PAGE_BYTES = 4096,
	RUN_ID_BYTES = 37,
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

struct memory_tracker {
	struct tracked_mm *mms;
	size_t count, capacity;
	char run_id[RUN_ID_BYTES]; /* "" = the last dump is of no use */
	bool has_parent;           /* of the dump that runs: it may refer to the one before */
};

struct memory_tracker *tracker_new(void)
{
	return xcalloc(1, sizeof(struct memory_tracker));
}

static void forget_armed(struct tracked_mm *mm)
{
	if (mm->armed)
		free(mm->armed->items);
	free(mm->armed);
	mm->armed = NULL;
}

static void end_tracking(struct tracked_mm *mm)
{
	close(mm->uffd);
	forget_armed(mm);
}

void tracker_free(struct memory_tracker *tracker)
{
	if (!tracker)
		return;
	for (size_t i = 0; i < tracker->count; i++)
		end_tracking(&tracker->mms[i]);
	free(tracker->mms);
	free(tracker);
}

const char *tracker_run_id(const struct memory_tracker *tracker)
{
	return tracker->run_id[0] ? tracker->run_id : NULL;
}

void tracker_set_run_id(struct memory_tracker *tracker, const char *run_id)
{
	snprintf(tracker->run_id, sizeof(tracker->run_id), "%s", run_id);
}

void tracker_forget_images(struct memory_tracker *tracker)
{
	tracker->run_id[0] = '\0';
}

const struct tracked_mm *tracker_list(const struct memory_tracker *tracker, size_t *ret_count)
{
	*ret_count = tracker->count;
	return tracker->mms;
}

void tracker_add(struct memory_tracker *tracker, const struct tracked_mm *mm)
{
	ARRAY_GROW(tracker->mms, tracker->count, tracker->capacity);
	tracker->mms[tracker->count++] = *mm;
}

/* ---- what the kernel can do ---- */

static int start_api(int uffd)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
	};

	return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

static int register_range(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register range = {
		.range = {.start = start, .len = end - start},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &range) < 0 ? -errno : 0;
}

/* Arms our page at @address. Returns 1 if it was marked as written before, 0 if not, or -errno. */
static int arm_own_page(int pagemap_fd, void *address)
{
	struct page_region region = {};
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING,
		.start = (uint64_t)address,
		.end = (uint64_t)address + PAGE_BYTES,
		.vec = (uint64_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_WPALLOWED | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_WRITTEN,
	};
	long count = ioctl(pagemap_fd, PAGEMAP_SCAN, &scan);

	return count < 0 ? -errno : count != 1 ? -ENODATA : !!(region.categories & PAGE_IS_WRITTEN);
}

/* Kernels before 6.13 left the marks on memory that was moved. Returns 1 if this one takes them away, 0 or -errno. */
static int move_takes_marks(int uffd, int pagemap_fd, char *pages)
{
	pages[0] = 1;
	int result = register_range(uffd, (uint64_t)pages, (uint64_t)pages + PAGE_BYTES);
	if (!result)
		result = arm_own_page(pagemap_fd, pages);
	if (result < 0)
		return result;
	if (mremap(pages, PAGE_BYTES, PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, pages + PAGE_BYTES) == MAP_FAILED)
		return -errno;
	result = register_range(uffd, (uint64_t)pages + PAGE_BYTES, (uint64_t)pages + 2 * PAGE_BYTES);
	return result < 0 ? result : arm_own_page(pagemap_fd, pages + PAGE_BYTES);
}

int tracker_check(struct failure *failure)
{
	_cleanup_fd_ int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	_cleanup_fd_ int pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char *pages = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int result = uffd < 0 || pagemap_fd < 0 || pages == MAP_FAILED ? -errno : start_api(uffd);

	if (!result)
		result = move_takes_marks(uffd, pagemap_fd, pages);
	if (pages != MAP_FAILED)
		munmap(pages, 2 * PAGE_BYTES);
	if (result < 0)
		return fail_errno(failure, result, "track-unsupported", "write tracking",
				  "Linux 6.7 or newer with CONFIG_USERFAULTFD is needed; without --track-mem every "
				  "dump is a full one",
				  "this kernel cannot follow changes of memory");
	if (!result)
		return fail(failure, EOPNOTSUPP, "track-unsupported", "write tracking",
			    "use a newer kernel (6.13), or dump without --track-mem",
			    "this kernel loses track of memory that mremap moves");
	return 0;
}

/* ---- the stages ---- */

static struct tracked_mm *find_mm(const struct memory_tracker *tracker, const struct dump_task *task)
{
	for (size_t i = 0; i < tracker->count; i++)
		if (tracker->mms[i].pid == task->pid && tracker->mms[i].start_time == task->start_time)
			return &tracker->mms[i];
	return NULL;
}

/* The address space is another one since an exec: any call says so. */
static bool is_gone(int uffd)
{
	struct uffdio_range nothing = {.start = PAGE_BYTES, .len = PAGE_BYTES};

	return ioctl(uffd, UFFDIO_UNREGISTER, &nothing) < 0 && (errno == ENOMEM || errno == ESRCH);
}

static bool is_in_tree(const struct dump *dump, const struct tracked_mm *mm)
{
	const struct dump_task *task = dump_find_task(dump, mm->pid);

	return task && task->state != TASK_STATE_DEAD && task->start_time == mm->start_time;
}

void tracker_begin(struct dump *dump)
{
	struct memory_tracker *tracker = dump->options->tracker;
	size_t kept = 0;

	for (size_t i = 0; i < tracker->count; i++) {
		if (is_in_tree(dump, &tracker->mms[i]) && !is_gone(tracker->mms[i].uffd))
			tracker->mms[kept++] = tracker->mms[i];
		else
			end_tracking(&tracker->mms[i]);
	}
	tracker->count = kept;
	tracker->has_parent = tracker->run_id[0];
}

bool tracker_wants(const struct dump *dump, const struct dump_task *task)
{
	return dump->options->tracker && !dump->only_explain && task->state != TASK_STATE_DEAD &&
	       !find_mm(dump->options->tracker, task);
}

static int take_descriptor(const struct dump_task *task, int number, int *ret_uffd)
{
	_cleanup_fd_ int uffd = syscall(SYS_pidfd_getfd, task->pidfd, number, 0);
	int error = uffd < 0 ? -errno : 0;

	if (!error)
		*ret_uffd = TAKE_FD(uffd);
	return error;
}

size_t tracker_ask(struct program *program, uint64_t patience_ns)
{
	size_t step = PROGRAM_TRY(program, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	program_wait(program, patience_ns);
	PROGRAM_CALL_FLAGS(program, BLOB_STEP_MAY_FAIL | BLOB_STEP_RESULT_OF, SYS_close, (int64_t)step);
	return step;
}

int tracker_adopt(struct dump *dump, struct dump_task *task, size_t step)
{
	_cleanup_fd_ int uffd = -1;
	int64_t number;
	int error = injection_wait_step(&dump->failure, task->injection, 0, step, &number);

	if (error < 0)
		return fail_in(&dump->failure, "%s", dump_task_name(dump, task));
	int taken = number < 0 ? (int)number : take_descriptor(task, (int)number, &uffd);
	error = injection_go_on(&dump->failure, task->injection, 0);
	if (error < 0)
		return fail_in(&dump->failure, "%s", dump_task_name(dump, task));
	if (!taken)
		taken = start_api(uffd);
	if (taken < 0) {
		log_warn("%s: its writes cannot be tracked (%s), so all of its memory is dumped each time",
			 dump_task_name(dump, task), strerror(-taken));
		return 0;
	}
	tracker_add(dump->options->tracker, &(struct tracked_mm){task->pid, task->start_time, TAKE_FD(uffd), NULL});
	return 0;
}

static bool is_trackable(const VmaEntry *vma)
{
	const struct mem_kind *kind = mem_kind_of_entry(vma);

	return kind && kind->has_private_pages && !(vma->status & VMA_STATUS_VDSO) && !(vma->flags & MAP_SHARED);
}

/* The kernel takes several mappings in one call, or none: what it does not take is found by halves. */
static void register_vmas(int uffd, VmaEntry *const *vmas, size_t count)
{
	if (!register_range(uffd, vmas[0]->start, vmas[count - 1]->end) || count == 1)
		return;
	register_vmas(uffd, vmas, count / 2);
	register_vmas(uffd, vmas + count / 2, count - count / 2);
}

/* Ranges with marks that nobody keeps. */
static int find_stale_marks(int pagemap_fd, struct region_list *stale)
{
	const struct pm_scan_arg unregistered_but_marked = {
		.end = ADDRESS_SPACE_END,
		.category_inverted = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
		.category_mask = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};

	return page_regions_scan(pagemap_fd, &unregistered_but_marked, stale);
}

/* What was not registered now either is dumped in full without asking its marks. */
static int clear_marks(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_writeprotect range = {.range = {.start = start, .len = end - start}};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &range) < 0 && errno != ENOENT ? -errno : 0;
}

/* Mapping by mapping: the kernel stops at the first that is not registered. Both lists ascend. */
static int clear_stale_marks(int uffd, const MmEntry *mm, const struct region_list *stale)
{
	size_t first = 0;
	int error = 0;

	for (size_t i = 0; i < stale->count; i++) {
		const struct page_region *region = &stale->items[i];
		while (first < mm->n_vmas && mm->vmas[first]->end <= region->start)
			first++;
		for (size_t v = first; v < mm->n_vmas && mm->vmas[v]->start < region->end && !error; v++) {
			const VmaEntry *vma = mm->vmas[v];
			error = clear_marks(uffd, region->start > vma->start ? region->start : vma->start,
					    region->end < vma->end ? region->end : vma->end);
		}
	}
	return error;
}

static void register_all(int uffd, const MmEntry *mm)
{
	for (size_t i = 0; i < mm->n_vmas;) {
		size_t first = i;
		while (i < mm->n_vmas && is_trackable(mm->vmas[i]))
			i++;
		if (i > first)
			register_vmas(uffd, &mm->vmas[first], i - first);
		else
			i++;
	}
}

int tracker_register(struct dump *dump, struct dump_task *task, int pagemap_fd)
{
	const struct tracked_mm *mm = find_mm(dump->options->tracker, task);
	struct region_list stale = {};

	if (!mm)
		return 0;
	if (dump->options->tracking_ends) /* of what is not registered no mark is asked, and none is set */
		return 1;
	int error = find_stale_marks(pagemap_fd, &stale);
	if (!error) {
		register_all(mm->uffd, task->mm);
		error = clear_stale_marks(mm->uffd, task->mm, &stale);
	}
	free(stale.items);
	return error ? error : 1;
}

bool tracker_has_parent(const struct dump *dump)
{
	return dump->options->tracker->has_parent;
}

const struct region_list *tracker_armed(const struct dump *dump, const struct dump_task *task)
{
	const struct tracked_mm *mm = find_mm(dump->options->tracker, task);

	return mm ? mm->armed : NULL;
}

void tracker_set_armed(struct dump *dump, const struct dump_task *task, struct region_list *list)
{
	struct tracked_mm *mm = find_mm(dump->options->tracker, task);

	if (!mm)
		return;
	forget_armed(mm);
	if (!list)
		return;
	mm->armed = xcalloc(1, sizeof(*mm->armed));
	*mm->armed = *list;
	*list = (struct region_list){};
}

void tracker_arming(struct dump *dump)
{
	dump->options->tracker->run_id[0] = '\0';
}

int tracker_disarm(const struct dump *dump, const struct dump_task *task, uint64_t address, uint64_t bytes)
{
	const struct tracked_mm *mm = find_mm(dump->options->tracker, task);
	struct uffdio_writeprotect range = {.range = {.start = address, .len = bytes}};

	return mm && ioctl(mm->uffd, UFFDIO_WRITEPROTECT, &range) < 0 ? -errno : 0;
}

void tracker_commit(struct dump *dump)
{
	tracker_set_run_id(dump->options->tracker, dump->run_id);
}

/* ---- counting ---- */

static int count_written(int pagemap_fd, uint64_t *pages)
{
	static const struct region_list nothing;
	const struct pm_scan_arg written = {
		.end = ADDRESS_SPACE_END,
		.category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO,
		.category_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_WRITTEN,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_WRITTEN,
	};
	struct region_list found = {};
	int error = page_regions_scan_changes(pagemap_fd, &written, false, &nothing, &found);

	for (size_t i = 0; i < found.count; i++)
		*pages += (found.items[i].end - found.items[i].start) / PAGE_BYTES;
	free(found.items);
	return error;
}

int tracker_count_dirty(const struct memory_tracker *tracker, struct failure *failure, uint64_t *ret_pages)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < tracker->count; i++) {
		_cleanup_fd_ int proc_dirfd = proc_open(tracker->mms[i].pid);
		struct proc_stat stat;
		if (proc_dirfd < 0 || proc_read_stat(proc_dirfd, "stat", &stat) < 0 ||
		    stat.start_time != tracker->mms[i].start_time)
			continue;
		_cleanup_fd_ int fd = openat(proc_dirfd, "pagemap", O_RDONLY | O_CLOEXEC);
		int error = fd < 0 ? -errno : count_written(fd, &pages);
		if (error < 0 && error != -ESRCH)
			return fail_errno(failure, error, "task-pagemap", NULL, NULL,
					  "cannot scan the pages of process %d", tracker->mms[i].pid);
	}
	*ret_pages = pages;
	return 0;
}
