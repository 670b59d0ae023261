/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a process of criu to the task: what runs in each live task when the whole tree exists, and its last program.
 *
 * Entry: all processes exist, private memory is in place next to criu's. Exit (in the interpreter): criu's memory is
 * gone, the task's mappings, threads and state are complete, every thread has reported and waits.
 */
#include "restore/switch.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/uapi.h"
#include "kinds/fd/regular.h"
#include "kinds/mem/mem_kind.h"
#include "kinds/mem/vdso.h"
#include "kinds/task/fs.h"
#include "kinds/task/sched.h"
#include "kinds/task/task_kind.h"
#include "restore/files.h"
#include "restore/lazy.h"
#include "restore/memory.h"
#include "restore/shared.h"
#include "restore/stage.h"

enum { PAGE_BYTES = 4096 };

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

struct range {
	uint64_t start, end;
};

struct ranges {
	struct range *items;
	size_t count, capacity;
};

static void add_range(struct ranges *ranges, uint64_t start, uint64_t end)
{
	ARRAY_GROW(ranges->items, ranges->count, ranges->capacity);
	ranges->items[ranges->count++] = (struct range){start, end};
}

static int compare_ranges(const void *left, const void *right)
{
	const struct range *a = left, *b = right;

	return a->start < b->start ? -1 : a->start > b->start;
}

static bool is_mapped_by_criu(const VmaEntry *vma)
{
	const struct mem_kind *kind = mem_kind_of_entry(vma);

	return kind && !kind->is_special;
}

/* Everything between what stays is unmapped, gap by gap: to look where something lies would cost more. */
static void plan_unmap(struct program *program, struct ranges *kept)
{
	uint64_t covered = PAGE_BYTES;

	qsort(kept->items, kept->count, sizeof(*kept->items), compare_ranges);
	for (size_t i = 0; i <= kept->count; i++) {
		uint64_t end = i < kept->count ? kept->items[i].start : ADDRESS_SPACE_END;
		if (end > covered) {
			PROGRAM_CALL(program, SYS_munmap, covered, end - covered);
			program_describe(program, "munmap of criu's own memory");
		}
		if (i < kept->count && kept->items[i].end > covered)
			covered = kept->items[i].end;
	}
}

static void keep_ranges(const struct restore_task *task, const struct stage *stage, struct ranges *kept)
{
	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		uint64_t placed = task->memory->placed[i];
		if (is_mapped_by_criu(vma))
			add_range(kept, placed, placed + (vma->end - vma->start));
	}
	add_range(kept, stage->address, stage->address + stage->bytes);
}

static void plan_staged(const struct restore_task *task, struct program *program)
{
	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		uint64_t placed = task->memory->placed[i], bytes = vma->end - vma->start;
		if (!is_mapped_by_criu(vma) || placed == vma->start)
			continue;
		PROGRAM_CALL(program, SYS_mremap, placed, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, vma->start);
		program_describe(program, "mremap of a mapping to its place");
	}
}

static void plan_seals(const struct restore_task *task, struct program *program)
{
	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		if (!vma->has_sealed || !vma->sealed || !is_mapped_by_criu(vma))
			continue;
		PROGRAM_CALL(program, SYS_mseal, vma->start, vma->end - vma->start, 0);
		program_describe(program, "mseal");
	}
}

/* The layout of struct prctl_mm_map, which kernel headers have only since 3.18 and never for 32 bits. */
struct mm_borders {
	uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
	uint64_t arg_start, arg_end, env_start, env_end;
	uint64_t auxv;
	uint32_t auxv_size, exe_fd;
};

static void plan_mm(const struct restore_task *task, struct program *program, int exe_fd)
{
	const MmEntry *mm = task->mm;
	size_t words = mm->n_mm_saved_auxv;
	_cleanup_free_ uint64_t *auxv = xcalloc(words + 2, sizeof(*auxv));
	struct mm_borders borders = {
		.start_code = mm->mm_start_code,
		.end_code = mm->mm_end_code,
		.start_data = mm->mm_start_data,
		.end_data = mm->mm_end_data,
		.start_brk = mm->mm_start_brk,
		.brk = mm->mm_brk,
		.start_stack = mm->mm_start_stack,
		.arg_start = mm->mm_arg_start,
		.arg_end = mm->mm_arg_end,
		.env_start = mm->mm_env_start,
		.env_end = mm->mm_env_end,
		.auxv_size = (words + 2) * sizeof(*auxv),
		.exe_fd = exe_fd,
	};

	if (words)
		memcpy(auxv, mm->mm_saved_auxv, words * sizeof(*auxv));
	borders.auxv = program_copy(program, auxv, borders.auxv_size).address;
	remote_t where = program_copy(program, &borders, sizeof(borders));
	PROGRAM_CALL(program, SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, where.address, sizeof(borders), 0);
	program_describe(program, "prctl(PR_SET_MM_MAP)");
	PROGRAM_CALL(program, SYS_close, exe_fd);
}

/* Threads start in the interpreter with programs of their own, with the pids of the images. */
static void plan_threads(const struct restore_task *task, const struct stage *stage, struct program *program)
{
	uint64_t slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);

	for (size_t i = 1; i < task->thread_count; i++) {
		pid_t tid = task->entry->threads[i];
		if (sched_default_timer_slack_ns(task->thread_cores[i]) != slack_ns) {
			slack_ns = sched_default_timer_slack_ns(task->thread_cores[i]);
			PROGRAM_CALL(program, SYS_prctl, PR_SET_TIMERSLACK, slack_ns);
			program_describe(program, "prctl(PR_SET_TIMERSLACK) for a thread to be made");
		}
		struct clone_args args = {
			.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
			.stack = stage->slots[i].stack - 1024,
			.stack_size = 1024 - 64,
			.set_tid = program_copy(program, &tid, sizeof(tid)).address,
			.set_tid_size = 1,
		};
		remote_t where = program_copy(program, &args, sizeof(args));
		PROGRAM_CALL_FLAGS(program, BLOB_STEP_SPAWN, SYS_clone3, where.address, sizeof(args),
				   stage->slots[i].run);
		program_describe(program, "clone3 of a thread (is its number taken?)");
	}
}

static int plan_kinds(struct restore *restore, struct program *program, size_t index)
{
	const struct restore_task *task = restore->self;

	for (const struct task_kind *const *kind = task_kinds; *kind; kind++) {
		int error = index == 0 && (*kind)->plan ? (*kind)->plan(restore, task, program) : 0;
		if (!error && (*kind)->plan_thread)
			error = (*kind)->plan_thread(restore, task, task->thread_cores[index],
						     task->entry->threads[index], program);
		if (error < 0)
			return fail_in(&restore->failure, "%s", restore_task_name(restore, task));
	}
	return 0;
}

static int place_thread(struct restore *restore, const struct stage *stage, size_t index)
{
	struct program *program = stage_program(stage, index);
	int error = plan_kinds(restore, program, index);

	if (!error)
		error = stage_place(restore, 0, stage, index, restore->self->first_notice + index, program);
	program_free(program);
	return error;
}

static int place_leader(struct restore *restore, const struct stage *stage, int exe_fd)
{
	const struct restore_task *task = restore->self;
	struct program *program = stage_program(stage, 0);
	struct ranges kept = {};
	uint64_t waiting, waiting_end;

	keep_ranges(task, stage, &kept);
	int error = vdso_plan_leave(restore, program, &waiting, &waiting_end);
	if (!error) {
		add_range(&kept, waiting, waiting_end);
		plan_unmap(program, &kept);
		plan_staged(task, program);
		error = vdso_plan_arrive(restore, waiting, program);
	}
	if (!error) {
		plan_mm(task, program, exe_fd);
		plan_threads(task, stage, program);
		plan_seals(task, program);
		error = plan_kinds(restore, program, 0);
	}
	if (!error)
		error = stage_place(restore, 0, stage, 0, task->first_notice, program);
	/* The old vDSO was read from a pages file. */
	page_chain_close_files(restore->page_chain);
	free(kept.items);
	return error;
}

/* glibc has registered an rseq area for this thread; it lies in memory that goes away. */
static void unregister_rseq(void)
{
	enum { UNREGISTER = 1, AREA_BYTES = 32 };
	void *area = (char *)__builtin_thread_pointer() + __rseq_offset;

	if (__rseq_size)
		syscall(SYS_rseq, area, AREA_BYTES, UNREGISTER, RSEQ_SIG);
}

static int open_exe(struct restore *restore, int *ret_fd)
{
	int error = regular_open(restore, restore->self->mm->exe_file_id, O_RDONLY, ret_fd);

	return error ? fail_in(&restore->failure, "its program") : restore_park(restore, ret_fd);
}

/*
 * What came with the fork, but for what is held for all tasks above their tables. A session's leader has offers
 * already.
 */
static void close_inherited(const struct restore *restore, int log)
{
	const int own[] = {restore->images_dirfd, restore->notify_fd, restore->lazy_fd, log};
	size_t count = ARRAY_SIZE(own) + restore->offered_count;
	_cleanup_free_ int *keep = xcalloc(count, sizeof(*keep));

	memcpy(keep, own, sizeof(own));
	if (restore->offered_count)
		memcpy(keep + ARRAY_SIZE(own), restore->offered, restore->offered_count * sizeof(*keep));
	files_close_others(restore, restore->above_tables, keep, count);
}

static int prepare_descriptors(struct restore *restore)
{
	int log = log_fd();
	int error = files_move_service_fd(restore, &restore->images_dirfd);

	if (!error)
		error = files_move_service_fd(restore, &restore->notify_fd);
	if (!error)
		error = files_move_service_fd(restore, &restore->lazy_fd);
	if (!error && log >= 0) {
		/* Standard error is still in use by criu's other processes: the number moves, the file stays. */
		error = files_move_service_fd(restore, &log);
		log_move(log);
	}
	if (error < 0)
		return error;
	page_chain_close_files(restore->page_chain);
	if (!restore->options->shell_job)
		close_inherited(restore, log);
	return 0;
}

static int restore_task(struct restore *restore, int *ret_exe_fd)
{
	int error = prepare_descriptors(restore);

	if (!error)
		error = files_restore(restore);
	if (!error)
		error = memory_restore_shared(restore);
	if (!error)
		error = memory_finish(restore);
	if (!error)
		error = lazy_hand_over(restore);
	return error ? error : open_exe(restore, ret_exe_fd);
}

/* Loader threads made glibc take two signals for itself; the task's actions are set already or come last. */
static void forget_library_signals(void)
{
	enum { FIRST_INTERNAL = 32, LAST_INTERNAL = 33 };
	const struct {
		uint64_t handler, flags, restorer, mask;
	} by_default = {};

	for (int signal = FIRST_INTERNAL; signal <= LAST_INTERNAL; signal++)
		syscall(SYS_rt_sigaction, signal, &by_default, NULL, sizeof(uint64_t));
}

/* The last moment in criu's code: nothing that is called from here may need memory or descriptors of criu. */
static void leave_criu(const struct restore *restore, const struct stage *stage, int exe_fd) __attribute__((noreturn));

static void leave_criu(const struct restore *restore, const struct stage *stage, int exe_fd)
{
	const int keep[] = {restore->notify_fd, exe_fd};

	files_close_others(restore, INT32_MAX, keep, ARRAY_SIZE(keep));
	forget_library_signals();
	unregister_rseq();
	stage_enter(stage);
}

void switch_to_task(struct restore *restore)
{
	const struct restore_task *task = restore->self;
	const struct stage *stage = task->stage;
	sigset_t all;
	int exe_fd = -1;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	int error = restore_task(restore, &exe_fd);
	if (!error)
		error = stage_map(restore, stage);
	for (size_t i = 1; i < task->thread_count && !error; i++)
		error = place_thread(restore, stage, i);
	if (!error)
		error = place_leader(restore, stage, exe_fd);
	/* From here on paths mean what they mean to the task. */
	if (!error)
		error = fs_restore(restore);
	if (error < 0) {
		fail_in(&restore->failure, "%s", restore_task_name(restore, task));
		shared_abort(restore);
		_exit(1);
	}
	leave_criu(restore, stage, exe_fd);
}
