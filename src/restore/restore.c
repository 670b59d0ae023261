/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The restore, in one look:
 *
 *     read → plan → make the processes → (in each: files, memory, last program) → stop all → finish → let go
 *
 * Until the last step criu can fail or die at any time and nothing stays: processes are children that die with their
 * parent at first, traced with EXITKILL from then on.
 */
#include "restore/restore.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "image/page_chain.h"
#include "kinds/fd/fd_kind.h"
#include "model/action_script.h"
#include "restore/heap.h"
#include "restore/lazy.h"
#include "restore/memory.h"
#include "restore/progress.h"
#include "restore/read.h"
#include "restore/resume.h"
#include "restore/shared.h"
#include "restore/stage.h"
#include "restore/streamed.h"
#include "restore/switch.h"
#include "restore/tree.h"

/*
 * Numbers that the kernel picks by itself (loader threads, helpers) should not be numbers that the tree wants:
 * picking goes on behind the highest of them. Advice only.
 */
static void move_pids_on(const struct restore *restore)
{
	uint32_t highest = 0;
	char text[16];

	for (size_t i = 0; i < restore->task_count; i++) {
		const PstreeEntry *entry = restore->tasks[i]->entry;
		/* A dead task has no threads. */
		const uint32_t ids[] = {entry->pid, entry->pgid, entry->sid};
		for (size_t t = 0; t < ARRAY_SIZE(ids); t++)
			highest = ids[t] > highest ? ids[t] : highest;
		for (size_t t = 0; t < entry->n_threads; t++)
			highest = entry->threads[t] > highest ? entry->threads[t] : highest;
	}
	snprintf(text, sizeof(text), "%u", highest);
	write_text_at(AT_FDCWD, "/proc/sys/kernel/ns_last_pid", text);
}

static int write_pidfile(struct restore *restore, pid_t pid)
{
	const char *path = restore->options->pidfile;
	char text[16];

	if (!path)
		return 0;
	_cleanup_fd_ int fd = openat(restore->options->work_dirfd, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int length = snprintf(text, sizeof(text), "%d", pid);
	int error = fd < 0 ? -errno : write_full(fd, text, length);
	return error ? fail_errno(&restore->failure, error, "pidfile", path,
				  error == -EEXIST ? "remove it, or choose another name" : NULL,
				  "cannot write the pid file")
		     : 0;
}

static int write_stats(struct restore *restore)
{
	StatsEntry stats = STATS_ENTRY__INIT;
	struct image *image;

	stats.restore = &restore->stats;
	int error =
		image_create_at(restore->options->work_dirfd, "stats-restore", &restore->failure, IMAGE_STATS, &image);
	if (error < 0)
		return error;
	image_write(image, &stats.base);
	return image_close(&image);
}

static int run_script(struct restore *restore, const char *action, pid_t pid)
{
	return action_scripts_run(restore->options->scripts, action, pid, &restore->failure);
}

static int before_open(struct restore *restore)
{
	int error = 0;

	for (const struct fd_kind *const *kind = fd_kinds; *kind && !error; kind++)
		error = (*kind)->before_open ? (*kind)->before_open(restore) : 0;
	return error;
}

/* The first process; in a migration it is there already, and it is criu that comes to be. */
static int make_root(struct restore *restore, struct restore_tree_node *root, pid_t *ret_pid)
{
	int error;

	if (!restore->options->preload) {
		error = before_open(restore);
		return error ? error : tree_create(restore, root, switch_to_task, ret_pid);
	}
	error = tree_become(restore, root, switch_to_task, ret_pid);
	if (!error)
		error = before_open(restore);
	return error ? error : shared_wait(restore, BARRIER_STARTED);
}

/* Everything between the first fork and the moment when all threads are ready to run. */
static int build_tree(struct restore *restore, struct restore_tree_node *root, pid_t *ret_pid)
{
	int pair[2];
	uint64_t begin = clock_now_us();

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return fail_errno(&restore->failure, errno, "restore-socket", NULL, NULL, "socketpair");
	_cleanup_fd_ int notify_fd = pair[0];
	restore->notify_fd = pair[1];
	progress_plan(restore);
	progress_stage(restore, "memory");
	int error = make_root(restore, root, ret_pid);
	close(pair[1]);
	if (!error)
		error = shared_watch(restore, BARRIER_FORKED, resume_check_alive);
	restore->stats.forking_time = clock_now_us() - begin;
	if (!error)
		error = resume_seize_leaders(restore);
	if (!error)
		error = resume_gather(restore, notify_fd);
	if (error < 0)
		return error;
	progress_report(restore);
	progress_stage(restore, "finish");
	return resume_finish(restore, notify_fd);
}

/* Who knows better: the process that failed and told why, not the one that saw it die. */
static void take_shared_failure(struct restore *restore)
{
	if (atomic_load(&restore->shared->aborted) && failure_is_set(&restore->shared->failure))
		restore->failure = restore->shared->failure;
}

static int run(struct restore *restore, pid_t *ret_pid)
{
	struct restore_tree_node *root = NULL;
	uint64_t begin = clock_now_us();

	int error = progress_create(restore);
	if (error < 0)
		return error;
	progress_stage(restore, "read");
	/* Reading the images makes files that are held above the tree's numbers. */
	error = lazy_connect(restore);
	if (!error)
		error = read_images(restore);
	if (!error)
		error = tree_plan(restore, &root);
	if (!error)
		error = stage_plan(restore);
	if (error < 0)
		return error;
	if (restore->options->show_plan) {
		tree_print(root, 0, stdout);
		return 0;
	}
	error = run_script(restore, "pre-restore", 0);
	if (!error)
		error = shared_create(restore);
	if (error < 0)
		return error;
	move_pids_on(restore);
	heap_share(restore);
	error = build_tree(restore, root, ret_pid);
	if (!error)
		error = streamed_finish(restore);
	if (!error)
		error = write_pidfile(restore, *ret_pid);
	if (!error)
		error = run_script(restore, "post-restore", *ret_pid);
	if (!error)
		error = run_script(restore, "pre-resume", *ret_pid);
	if (!error && restore->options->before_resume)
		error = restore->options->before_resume(restore->options->context, &restore->failure);
	if (!error)
		error = resume_check_standing(restore);
	if (error < 0) {
		resume_kill(restore, *ret_pid);
		take_shared_failure(restore);
		return error;
	}
	resume_release(restore);
	/* The daemon may end when all memory is in place. */
	close_fd_pointer(&restore->lazy_fd);
	restore->lazy_fd = -1;
	restore->stats.restore_time = clock_now_us() - begin;
	progress_collect(restore);
	if (write_stats(restore) < 0)
		log_warn("cannot write stats-restore: %s", restore->failure.cause);
	failure_clear(&restore->failure);
	if (run_script(restore, "post-resume", *ret_pid) < 0)
		log_warn("post-resume: %s", restore->failure.cause);
	failure_clear(&restore->failure);
	return 0;
}

static int wait_for_root(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int execute(struct restore *restore)
{
	execvp(restore->options->command[0], restore->options->command);
	return fail_errno(&restore->failure, errno, "exec-cmd", restore->options->command[0], NULL,
			  "cannot execute it");
}

int restore_run(const struct restore_options *options, struct failure *failure, int *ret_exit_status)
{
	struct restore restore = {
		.options = options, .images_dirfd = options->images_dirfd, .notify_fd = -1, .lazy_fd = -1};
	pid_t pid = 0;

	restore_stats_entry__init(&restore.stats);
	*ret_exit_status = 0;
	int error = streamed_open(&restore);
	if (!error) {
		restore.page_chain = page_chain_new(restore.images_dirfd, &restore.failure);
		streamed_serve_chain(&restore);
		error = run(&restore, &pid);
	}
	page_chain_free(restore.page_chain);
	streamed_close(&restore);
	if (!error && pid && options->exec_command)
		error = execute(&restore);
	else if (!error && pid && !options->detached)
		*ret_exit_status = wait_for_root(pid);
	*failure = restore.failure;
	close_fd_pointer(&restore.lazy_fd);
	shared_free(restore.shared);
	progress_free(&restore);
	return error;
}
