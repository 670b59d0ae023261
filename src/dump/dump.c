/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dump, in one look:
 *
 *     freeze → collect → inspect → describe memory and files → write pages → take the interpreter out
 *            → write the small images → let run / leave stopped / kill
 *
 * At any instant criu may fail or be killed, and the tree must run on. Stops are ptrace stops, which end with the
 * tracer; what is inside the tasks undoes itself (inject/injection.h); a complete dump is told by inventory.img,
 * which is removed first and written last.
 */
#include "dump/dump.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "dump/stages.h"
#include "inject/ptrace.h"
#include "kernel/file_objects.h"
#include "kernel/kernel_types.h"
#include "kernel/proc.h"
#include "kernel/restart_blocks.h"
#include "kernel/task_objects.h"
#include "kernel/vm_flags.h"
#include "kinds/fd/file_lock.h"
#include "kinds/fd/regular.h"
#include "kinds/mem/memory.h"
#include "kinds/mem/track.h"
#include "kinds/task/fs.h"
#include "kinds/task/pending.h"
#include "kinds/task/landlock.h"
#include "kinds/task/process_facts.h"
#include "kinds/task/semaphore_undo.h"
#include "model/action_script.h"
#include "model/page_sink.h"

const char *const dump_stages[] = {
	"start",    "frozen",    "collected", "injecting", "injected", "inspecting", "inspected",
	"released", "described", "scanned",   "pages",     "written",  "ending",     NULL,
};

enum { KERNEL_THREAD_FLAG = 0x00200000 };

void dump_stage(struct dump *dump, const char *name)
{
	log_debug("stage %s", name);
	if (dump->options->die_at && !strcmp(dump->options->die_at, name))
		kill(getpid(), SIGKILL);
}

static bool is_ancestor(pid_t pid)
{
	for (pid_t at = getpid(); at > 0;) {
		struct proc_stat stat;
		if (at == pid)
			return true;
		_cleanup_fd_ int fd = proc_open(at);
		if (fd < 0 || proc_read_stat(fd, "stat", &stat) < 0)
			return false;
		at = stat.ppid;
	}
	return false;
}

int dump_check_pid(pid_t pid, struct failure *failure)
{
	_cleanup_free_ char *status = NULL;
	struct proc_stat stat;
	char object[32];
	_cleanup_fd_ int fd = proc_open(pid);

	snprintf(object, sizeof(object), "process %d", pid);
	if (fd < 0 || proc_read_stat(fd, "stat", &stat) < 0 || read_text_at(fd, "status", &status, NULL) < 0)
		return fail(failure, ESRCH, "pid-missing", object, "look it up with ps or pgrep",
			    "there is no such process");
	const char *leader = proc_field(status, "Tgid");
	if (leader && atoi(leader) != pid)
		return fail(failure, EINVAL, "pid-thread", object, "give the process", "it is a thread of process %d",
			    atoi(leader));
	if (stat.flags & KERNEL_THREAD_FLAG)
		return fail(failure, EINVAL, "pid-kernel", object, NULL, "it is a thread of the kernel (%s)",
			    stat.comm);
	if (is_ancestor(pid))
		return fail(failure, EINVAL, "pid-ancestor", object, "run criu from outside the tree",
			    pid == getpid() ? "it is criu itself"
					    : "it is an ancestor of criu, which would stop itself");
	if (stat.state == 'Z')
		return fail(failure, ESRCH, "pid-dead", object, NULL, "it has ended and waits for its parent");
	return 0;
}

/* ---- nothing old stays in the images directory, and nothing new after a failure ---- */

struct directory_listing {
	char **names;
	size_t count, capacity;
};

static void list_directory(int dirfd, struct directory_listing *listing)
{
	_cleanup_dir_ DIR *directory = NULL;
	struct dirent *entry;
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	directory = fd < 0 ? NULL : fdopendir(fd);
	while (directory && (entry = readdir(directory))) {
		ARRAY_GROW(listing->names, listing->count, listing->capacity);
		listing->names[listing->count++] = xstrdup(entry->d_name);
	}
}

static bool is_listed(const struct directory_listing *listing, const char *name)
{
	for (size_t i = 0; i < listing->count; i++)
		if (!strcmp(listing->names[i], name))
			return true;
	return false;
}

static void free_listing(struct directory_listing *listing)
{
	for (size_t i = 0; i < listing->count; i++)
		free(listing->names[i]);
	free(listing->names);
}

static void remove_new_images(int dirfd, const struct directory_listing *before)
{
	struct directory_listing now = {};

	list_directory(dirfd, &now);
	for (size_t i = 0; i < now.count; i++) {
		size_t length = strlen(now.names[i]);
		if (length > 4 && !strcmp(now.names[i] + length - 4, ".img") && !is_listed(before, now.names[i]))
			unlinkat(dirfd, now.names[i], 0);
	}
	free_listing(&now);
}

/* Memory that goes elsewhere may be in here already: the page server may have been given the same directory. */
static bool is_of_this_dump(const struct dump *dump, enum image_kind kind)
{
	return dump->options->page_sink &&
	       (kind == IMAGE_PAGES || kind == IMAGE_PAGEMAP || kind == IMAGE_SHMEM_PAGEMAP);
}

/*
 * Many images exist only if there is something to put into them. One that an earlier dump left would be taken for a
 * part of this one: its deleted files would become programs of this tree. @before forgets what is removed.
 */
static int remove_old_images(struct dump *dump, struct directory_listing *before)
{
	enum image_kind kind;

	/* First, so that a kill in between leaves nothing that a restore would take. */
	if (unlinkat(dump->images_dirfd, "inventory.img", 0) < 0 && errno != ENOENT)
		return fail_errno(&dump->failure, errno, "image-old", "inventory.img", "choose another --images-dir",
				  "cannot remove this image of an earlier dump");
	for (size_t i = 0; i < before->count;) {
		char *name = before->names[i];

		if (image_kind_of_name(name, &kind) < 0 || is_of_this_dump(dump, kind)) {
			i++;
			continue;
		}
		if (unlinkat(dump->images_dirfd, name, 0) < 0 && errno != ENOENT)
			return fail_errno(&dump->failure, errno, "image-old", name, "choose another --images-dir",
					  "cannot remove this image of an earlier dump");
		free(name);
		before->names[i] = before->names[--before->count];
	}
	return 0;
}

/* ---- the stages ---- */

static int dump_exe(struct dump *dump, struct dump_task *task)
{
	const struct process_link_fact *fact = &task->facts->links[PROCESS_EXE];
	_cleanup_free_ char *link = NULL;

	if (!fact->error && regular_is_known(dump, &fact->stat, fact->target, O_RDONLY, &task->mm->exe_file_id))
		return 0;
	_cleanup_fd_ int fd = openat(task->proc_dirfd, "exe", O_PATH | O_CLOEXEC);

	if (fd < 0 || read_link_at(task->proc_dirfd, "exe", &link) < 0)
		return fail_errno(&dump->failure, errno, "task-exe", dump_task_name(dump, task), NULL,
				  "cannot open its program");
	if (!regular_dump_fd(dump, task, fd, link, O_RDONLY, &task->mm->exe_file_id))
		return 0;
	fail_in(&dump->failure, "%s: its program", dump_task_name(dump, task));
	return dump_blocked(dump);
}

static int describe(struct dump *dump)
{
	int error = 0;

	for (size_t i = 0; i < dump->task_count && !error; i++) {
		struct dump_task *task = dump->tasks[i];
		if (task->state == TASK_STATE_DEAD)
			continue;
		error = dump_exe(dump, task);
		if (!error)
			error = memory_describe(dump, task);
	}
	if (!error)
		error = dump_files(dump);
	for (size_t i = 0; i < dump->task_count && !error; i++)
		if (dump->tasks[i]->state != TASK_STATE_DEAD && fs_dump(dump, dump->tasks[i]) < 0)
			error = dump_blocked(dump);
	if (!error)
		error = finish_files(dump);
	if (!error) {
		error = file_locks_dump(dump);
		if (error < 0)
			error = dump_blocked(dump);
	}
	return error;
}

static int write_memory(struct dump *dump)
{
	uint64_t begin = clock_now_us();
	int error = memory_scan(dump);

	dump_stage(dump, "scanned");
	if (!error && dump->options->steps && dump->options->steps->scanned)
		error = dump->options->steps->scanned(dump->options->context, dump);
	if (!error && !dump->only_explain) {
		uint64_t scanned = clock_now_us();
		error = memory_write(dump);
		dump->stats.memwrite_time = clock_now_us() - scanned;
	}
	dump->stats.memdump_time = clock_now_us() - begin;
	return error;
}

/* The signals that ask criu to end: they wait until the tree is as it was. */
static void block_termination(sigset_t *ret_previous)
{
	sigset_t termination;

	sigemptyset(&termination);
	sigaddset(&termination, SIGINT);
	sigaddset(&termination, SIGTERM);
	sigaddset(&termination, SIGHUP);
	sigprocmask(SIG_BLOCK, &termination, ret_previous);
}

int dump_check_interrupted(struct failure *failure)
{
	sigset_t pending;

	sigpending(&pending);
	if (sigismember(&pending, SIGINT) || sigismember(&pending, SIGTERM) || sigismember(&pending, SIGHUP))
		return fail(failure, EINTR, "interrupted", "dump", NULL, "ended by a signal; the tree runs on");
	return 0;
}

static int hand_over(struct dump *dump)
{
	const struct dump_steps *steps = dump->options->steps;

	return steps && steps->written ? steps->written(dump->options->context, dump) : 0;
}

/* The first end of the stop counts. */
static void end_stop(struct dump *dump)
{
	if (!dump->stats.frozen_time)
		dump->stats.frozen_time = clock_now_us() - dump->freezing_us;
}

static void let_go(struct dump *dump)
{
	thaw_tree(dump);
	end_stop(dump);
}

static int pre_dump(struct dump *dump)
{
	int error = pre_dump_frozen(dump);

	if (!error)
		error = dump_check_interrupted(&dump->failure);
	let_go(dump);
	uint64_t running = clock_now_us();
	if (!error)
		error = pre_dump_running(dump);
	if (!error)
		error = hand_over(dump);
	dump->stats.memdump_time = dump->stats.memwrite_time = clock_now_us() - running;
	return error;
}

static int dump_frozen(struct dump *dump)
{
	dump_stage(dump, "frozen");
	int error = collect_tree(dump);
	dump_stage(dump, "collected");
	if (dump->options->tracker)
		tracker_begin(dump);
	if (!error)
		error = dump_check_interrupted(&dump->failure);
	if (!error)
		error = inspect_tree(dump);
	dump_stage(dump, "inspected");
	/* At once: what is in the tasks is exposed to our death, and must not be in the pages that are read. */
	int released = release_injections(dump);
	dump_stage(dump, "released");
	if (!error)
		error = released;
	if (!error)
		error = dump_check_interrupted(&dump->failure);
	if (!error)
		error = describe(dump);
	dump_stage(dump, "described");
	if (!error)
		error = dump_check_interrupted(&dump->failure);
	if (!error)
		error = write_memory(dump);
	dump_stage(dump, "pages");
	if (!error)
		error = dump_check_interrupted(&dump->failure);
	return error ? error : pending_refresh(dump);
}

/* ---- the end of the tree ---- */

static int stop_task(struct dump_task *task)
{
	_cleanup_free_ pid_t *tids = xcalloc(task->thread_count, sizeof(*tids));

	for (size_t t = 0; t < task->thread_count; t++)
		tids[t] = task->threads[t].tid;
	return threads_stop_group(task->pid, tids, task->thread_count);
}

static int leave_stopped(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		int error = task->state == TASK_STATE_ALIVE ? stop_task(task) : 0;
		if (error < 0)
			return fail_errno(&dump->failure, error, "task-stop", dump_task_name(dump, task), NULL,
					  "cannot stop it");
	}
	/* Found stopped or not, that is what they are from here on. */
	for (size_t i = 0; i < dump->task_count; i++)
		for (size_t t = 0; t < dump->tasks[i]->thread_count; t++)
			dump->tasks[i]->threads[t].stop_signal = SIGSTOP;
	let_go(dump);
	return 0;
}

static void kill_tree(struct dump *dump)
{
	for (size_t i = dump->task_count; i-- > 0;)
		if (dump->tasks[i]->state != TASK_STATE_DEAD)
			kill(dump->tasks[i]->pid, SIGKILL);
	/* Nothing of it waits any more; that the kernel takes its memory back is nobody's stop. */
	end_stop(dump);
	/* A tracer must see each of its threads end before the parents can. */
	for (size_t i = dump->task_count; i-- > 0;)
		for (size_t t = dump->tasks[i]->thread_count; t-- > 0;) {
			int signal;
			while (thread_wait(dump->tasks[i]->threads[t].tid, &signal) != THREAD_STOP_GONE)
				;
			dump->tasks[i]->threads[t].seized = false;
		}
}

static int end_running(struct dump *dump)
{
	release_files(dump, false);
	dump_stage(dump, "ending");
	let_go(dump);
	int error = write_images(dump);
	dump_stage(dump, "written");
	return error ? error : hand_over(dump);
}

static int end_stopped(struct dump *dump)
{
	int error = write_images(dump);

	dump_stage(dump, "written");
	if (!error)
		error = hand_over(dump);
	if (error < 0)
		return error;
	release_files(dump, false);
	dump_stage(dump, "ending");
	return leave_stopped(dump);
}

static int end_killed(struct dump *dump)
{
	int error = write_images(dump);

	dump_stage(dump, "written");
	if (!error)
		error = hand_over(dump);
	if (!error)
		error = action_scripts_run(dump->options->scripts, "post-dump", dump->options->pid, &dump->failure);
	if (error < 0)
		return error;
	dump_stage(dump, "ending");
	/* Before: a socket can be told to end without a word only while the task has it. */
	release_files(dump, true);
	kill_tree(dump);
	return 0;
}

static int end_tree(struct dump *dump)
{
	int error;

	if (dump->only_explain) {
		release_files(dump, false);
		let_go(dump);
		return 0;
	}
	switch (dump->options->end_state) {
	case DUMP_END_RUNNING:
		error = end_running(dump);
		break;
	case DUMP_END_STOPPED:
		error = end_stopped(dump);
		break;
	default:
		return end_killed(dump);
	}
	return error ? error
		     : action_scripts_run(dump->options->scripts, "post-dump", dump->options->pid, &dump->failure);
}

static void free_dump(struct dump *dump)
{
	landlock_end(dump);
	semaphore_undo_end(dump);
	free_files(dump);
	mapped_files_forget(dump);
	for (size_t i = 0; i < dump->task_count; i++) {
		struct dump_task *task = dump->tasks[i];
		memory_free(task);
		process_facts_free(task);
		free(task->threads);
		close_fd_pointer(&task->pidfd);
		close_fd_pointer(&task->proc_dirfd);
	}
	free(dump->tasks);
	arena_free(&dump->arena);
}

static int make_run_id(struct dump *dump)
{
	_cleanup_free_ char *text = NULL;
	int error = read_text_at(AT_FDCWD, "/proc/sys/kernel/random/uuid", &text, NULL);

	if (error < 0)
		return fail_errno(&dump->failure, error, "uuid", "/proc/sys/kernel/random/uuid", NULL,
				  "cannot read it");
	snprintf(dump->run_id, sizeof(dump->run_id), "%.36s", text);
	return 0;
}

/* Explaining writes what the kinds write (deleted files) into a place of its own that goes away with it. */
static int make_scratch_directory(struct dump *dump, char *path, size_t size)
{
	snprintf(path, size, "/tmp/criu-explain-XXXXXX");
	if (!mkdtemp(path))
		return fail_errno(&dump->failure, errno, "scratch", path, NULL, "cannot make a directory");
	dump->images_dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dump->images_dirfd < 0)
		return fail_errno(&dump->failure, errno, "scratch", path, NULL, "cannot open it");
	return 0;
}

static void remove_scratch_directory(struct dump *dump, const char *path)
{
	const struct directory_listing none = {};

	if (dump->images_dirfd >= 0) {
		remove_new_images(dump->images_dirfd, &none);
		close(dump->images_dirfd);
	}
	rmdir(path);
}

/* What is read faster from the kernel's own structures: flags of mappings, what tasks share, locks and owners of files.
 */
struct survey {
	bool much_memory, many_threads, many_files;
};

/* Looks at no more processes than it must. */
static struct survey survey_tree(pid_t root)
{
	enum { MUCH_PAGES = 96 * 1024 * 1024 / 4096, MANY_THREADS = 64, MANY_FILES = 1024 };
	_cleanup_free_ pid_t *pids = NULL;
	size_t count = 0, capacity = 0, threads = 0, files = 0;
	uint64_t pages = 0;

	ARRAY_GROW(pids, count, capacity);
	pids[count++] = root;
	for (size_t i = 0; i < count && (pages < MUCH_PAGES || threads < MANY_THREADS); i++) {
		_cleanup_fd_ int proc_dirfd = proc_open(pids[i]);
		struct proc_stat stat;
		struct stat table;
		if (proc_dirfd < 0 || proc_read_stat(proc_dirfd, "stat", &stat) < 0)
			continue;
		/* Since Linux 6.2 the size is the number of open files. */
		if (!fstatat(proc_dirfd, "fd", &table, 0) && (size_t)table.st_size > files)
			files = table.st_size;
		pages += stat.resident_pages;
		threads += stat.thread_count;
		proc_read_children(proc_dirfd, pids[i], &pids, &count, &capacity);
	}
	return (struct survey){pages >= MUCH_PAGES, threads >= MANY_THREADS, files >= MANY_FILES};
}

/* What reads the kernel's own structures is made while the tree still runs. */
static void open_readers(struct dump *dump)
{
	const struct survey survey = survey_tree(dump->options->pid);
	bool vm_flags = !dump->vm_flags && survey.much_memory;
	bool task_objects = !dump->options->pre_dump && survey.many_threads;
	bool file_objects = !dump->options->pre_dump && survey.many_files;

	if (!vm_flags && !task_objects && !file_objects)
		return;
	struct kernel_types *types = kernel_types_read();
	if (vm_flags)
		dump->vm_flags = vm_flags_open(types);
	if (task_objects)
		dump->task_objects = task_objects_open(types);
	if (file_objects)
		dump->file_objects = file_objects_open(types);
	kernel_types_free(types);
}

/*
 * Whether the root's first thread stands in a call with a restart block: then the program that reads it is loaded
 * before the tree stands. A guess, as the thread runs; others that need it have it loaded when they are dumped.
 */
static bool stands_in_wait(pid_t root)
{
	_cleanup_fd_ int proc_dirfd = proc_open(root);
	_cleanup_free_ char *call = NULL;

	if (proc_dirfd < 0 || read_text_at(proc_dirfd, "syscall", &call, NULL) < 0)
		return false;
	unsigned long number = strtoul(call, NULL, 10);
	return number && (number == SYS_restart_syscall || restart_blocks_knows(number));
}

static int run(struct dump *dump, struct directory_listing *before)
{
	dump_stage(dump, "start");
	int error = dump_check_pid(dump->options->pid, &dump->failure);
	if (!error)
		error = make_run_id(dump);
	if (!error && !dump->only_explain)
		error = action_scripts_run(dump->options->scripts, "pre-dump", dump->options->pid, &dump->failure);
	if (!error && !dump->only_explain)
		error = remove_old_images(dump, before);
	if (error < 0)
		return error;
	open_readers(dump);
	if (!dump->options->pre_dump && stands_in_wait(dump->options->pid))
		dump->restart_blocks = restart_blocks_open();
	if (!dump->options->pre_dump)
		error = semaphore_undo_prepare(dump);
	if (!error && dump->options->steps && dump->options->steps->freezing)
		dump->options->steps->freezing(dump->options->context);
	if (error < 0)
		return error;
	if (!dump->options->pre_dump)
		landlock_begin(dump);
	dump->freezing_us = clock_now_us();
	error = freeze_tree(dump);
	dump->stats.freezing_time = clock_now_us() - dump->freezing_us;
	if (error < 0)
		return error;
	if (dump->options->pre_dump)
		return pre_dump(dump);
	error = dump_frozen(dump);
	if (!error)
		error = end_tree(dump);
	if (error < 0) {
		release_files(dump, false);
		let_go(dump);
	}
	return error;
}

/* For engines that show figures; a dump does not fail over them. */
static void write_stats(struct dump *dump)
{
	StatsEntry stats = STATS_ENTRY__INIT;
	struct failure failure = {};
	struct image *image;

	stats.dump = &dump->stats;
	if (!image_create_at(dump->options->work_dirfd, "stats-dump", &failure, IMAGE_STATS, &image)) {
		image_write(image, &stats.base);
		image_close(&image);
	}
	if (failure_is_set(&failure))
		log_warn("cannot write stats-dump: %s", failure.cause);
}

static int attempt(const struct dump_options *options, struct failure *failure, DumpStatsEntry *ret_stats,
		   size_t *ret_blockers)
{
	struct dump dump = {.options = options,
			    .images_dirfd = options->images_dirfd,
			    .only_explain = options->explain,
			    .last_pages_id = options->page_sink ? options->page_sink->last_pages_id : 0,
			    .vm_flags = options->vm_flags};
	struct directory_listing before = {};
	char scratch[64] = "";
	int error = 0;

	dump_stats_entry__init(&dump.stats);
	if (options->explain)
		error = make_scratch_directory(&dump, scratch, sizeof(scratch));
	else
		list_directory(dump.images_dirfd, &before);
	if (!error)
		error = run(&dump, &before);
	if (options->explain)
		remove_scratch_directory(&dump, scratch);
	else if (error < 0)
		remove_new_images(dump.images_dirfd, &before);
	if (!error && options->tracker)
		tracker_commit(&dump);
	if (!error && !options->explain)
		write_stats(&dump);
	*failure = dump.failure;
	*ret_stats = dump.stats;
	*ret_blockers = dump.blocker_count;
	free_listing(&before);
	if (dump.vm_flags != options->vm_flags)
		vm_flags_close(dump.vm_flags);
	task_objects_close(dump.task_objects);
	file_objects_close(dump.file_objects);
	restart_blocks_close(dump.restart_blocks);
	free_dump(&dump);
	return error;
}

/*
 * What is different in the next attempt: a server under load is out of what it was in the middle of (a connection that
 * it has not accepted); a thread that was in code of a killed criu has left it.
 */
static bool is_worth_another(const struct failure *failure)
{
	return !strcmp(failure->code, "fd-tcp-in-flight") || !strcmp(failure->code, "inject-late");
}

int dump_run(const struct dump_options *options, struct failure *failure, DumpStatsEntry *ret_stats,
	     size_t *ret_blockers)
{
	enum { ATTEMPTS = 20 };
	const struct timespec moment = {.tv_nsec = 20 * 1000 * 1000};
	sigset_t previous;
	int error;

	block_termination(&previous);
	for (int tries = 1;; tries++) {
		error = attempt(options, failure, ret_stats, ret_blockers);
		if (!error || tries == ATTEMPTS || !is_worth_another(failure))
			break;
		log_info("%s; trying again", failure->cause);
		failure_clear(failure);
		nanosleep(&moment, NULL);
	}
	sigprocmask(SIG_SETMASK, &previous, NULL);
	return error;
}
