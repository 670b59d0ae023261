/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A dump with --leave-stopped ends with a tree in which every task is stopped by SIGSTOP. Nobody but its user knows
 * later which tree that was, so both commands look first and touch nothing before everything fits: each live task is
 * stopped, and if the images are given, each has the pid and the start time that the images say. Tasks are held by
 * pidfd from then on, so a pid that changes its owner meanwhile cannot be hit.
 *
 * A stopped task cannot fork, so the tree that was found is the whole tree.
 */
#include "dump/stopped.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "kernel/proc.h"
#include "kinds/fd/network_lock.h"
#include "kinds/fd/tcp_stream.h"
#include "model/dump.h"

#include "core.pb-c.h"
#include "pstree.pb-c.h"

struct stopped_task {
	pid_t pid;
	int pidfd, proc_dirfd;
	struct proc_stat stat;
	bool was_stopped; /* before the dump, as the images say */
};

struct stopped_tree {
	const struct stopped_options *options;
	struct failure *failure;
	struct stopped_task *tasks; /* parents before children */
	size_t count, capacity;
	int *netns_fds;
	ino_t *netns_inodes;
	size_t netns_count;
};

static void tree_release(struct stopped_tree *tree)
{
	for (size_t i = 0; i < tree->count; i++) {
		close_fd_pointer(&tree->tasks[i].pidfd);
		close_fd_pointer(&tree->tasks[i].proc_dirfd);
	}
	for (size_t i = 0; i < tree->netns_count; i++)
		close_fd_pointer(&tree->netns_fds[i]);
	free(tree->tasks);
	free(tree->netns_fds);
	free(tree->netns_inodes);
}

static int fail_task(struct stopped_tree *tree, const struct stopped_task *task, int error, const char *code,
		     const char *hint, const char *cause)
{
	char object[128];

	snprintf(object, sizeof(object), "task %d (%s)", task->pid, task->stat.comm);
	return fail(tree->failure, error, code, object, hint, "%s", cause);
}

static int fail_gone(struct stopped_tree *tree, pid_t pid)
{
	return fail(tree->failure, ESRCH, "pid-missing", NULL, NULL, "there is no process %d", pid);
}

/* A thread has a directory in /proc like a process, only its status tells. */
static int check_is_process(struct stopped_tree *tree, const struct stopped_task *task)
{
	_cleanup_free_ char *status = NULL;
	const char *group;

	if (read_text_at(task->proc_dirfd, "status", &status, NULL))
		return fail_gone(tree, task->pid);
	group = proc_field(status, "Tgid");
	if (group && atoi(group) != task->pid)
		return fail(tree->failure, EINVAL, "pid-thread", NULL, "give the process's own pid",
			    "%d is a thread of process %d", task->pid, atoi(group));
	return 0;
}

static int add_task(struct stopped_tree *tree, pid_t pid)
{
	struct stopped_task *task;

	ARRAY_GROW(tree->tasks, tree->count, tree->capacity);
	task = &tree->tasks[tree->count++];
	*task = (struct stopped_task){.pid = pid, .pidfd = -1, .proc_dirfd = proc_open(pid)};
	if (task->proc_dirfd < 0 || proc_read_stat(task->proc_dirfd, "stat", &task->stat))
		return fail_gone(tree, pid);
	if (tree->count == 1) {
		int ret = check_is_process(tree, task);

		if (ret)
			return ret;
	}
	task->pidfd = pidfd_open(pid, 0);
	if (task->pidfd < 0)
		return fail_errno(tree->failure, errno, "pid-open", NULL, NULL, "cannot open process %d", pid);
	return 0;
}

/* criu may not stop itself or what it runs under. */
static int check_not_ancestor(struct stopped_tree *tree)
{
	for (pid_t pid = getpid(); pid > 0;) {
		_cleanup_fd_ int dirfd = proc_open(pid);
		struct proc_stat stat;

		if (pid == tree->options->pid)
			return fail(tree->failure, EINVAL, "pid-self", NULL, NULL,
				    "process %d is criu itself or an "
				    "ancestor of it",
				    pid);
		if (dirfd < 0 || proc_read_stat(dirfd, "stat", &stat))
			break;
		pid = stat.ppid;
	}
	return 0;
}

static int add_children(struct stopped_tree *tree, size_t parent)
{
	_cleanup_free_ pid_t *children = NULL;
	_cleanup_free_ int *threads = NULL;
	size_t count = 0, capacity = 0, thread_count = 0;
	int dirfd = tree->tasks[parent].proc_dirfd;

	if (proc_list_numbers(dirfd, "task", &threads, &thread_count))
		return fail_gone(tree, tree->tasks[parent].pid);
	for (size_t i = 0; i < thread_count; i++)
		proc_read_children(dirfd, threads[i], &children, &count, &capacity);
	for (size_t i = 0; i < count; i++) {
		int ret = add_task(tree, children[i]);

		if (ret)
			return ret;
	}
	return 0;
}

static bool is_dead(char state)
{
	return state == 'Z' || state == 'X' || state == 'x';
}

static int check_thread_stopped(struct stopped_tree *tree, const struct stopped_task *task, int tid)
{
	/* A dump lets go of threads that stop a moment later: who comes right after it gives them that moment. */
	char state = proc_await_stop(task->pid, tid);

	if (state == 'T' || is_dead(state))
		return 0;
	if (state == 't')
		return fail_task(tree, task, EBUSY, "tree-traced", "end the debugger or the other criu first",
				 "is held by a tracer");
	return fail_task(tree, task, EBUSY, "tree-not-stopped",
			 "only a tree that `criu dump --leave-stopped` left can be killed or resumed",
			 "is not stopped");
}

static int check_stopped(struct stopped_tree *tree, const struct stopped_task *task)
{
	_cleanup_free_ int *threads = NULL;
	size_t count = 0;
	int ret = 0;

	if (proc_list_numbers(task->proc_dirfd, "task", &threads, &count))
		return fail_gone(tree, task->pid);
	for (size_t i = 0; i < count && !ret; i++)
		ret = check_thread_stopped(tree, task, threads[i]);
	return ret;
}

static int fail_not_in_images(struct stopped_tree *tree, const struct stopped_task *task)
{
	return fail_task(tree, task, EINVAL, "tree-not-of-images",
			 "give the images directory of this tree, or leave --images-dir out",
			 "is not in the images directory");
}

/* Compares one task with its entry of pstree.img and reads what it was doing before the dump. */
static int check_entry(struct stopped_tree *tree, struct stopped_task *task, const PstreeEntry *entry)
{
	ProtobufCMessage *message;
	const CoreEntry *core;
	int ret;

	if (entry->has_start_time && entry->start_time != task->stat.start_time) {
		char cause[200];

		snprintf(cause, sizeof(cause),
			 "is not the task in the images directory: pid %d started at %lu, in the images at %lu "
			 "(clock ticks since boot)",
			 task->pid, task->stat.start_time, entry->start_time);
		return fail_task(tree, task, EINVAL, "tree-not-of-images",
				 "the tree of these images is gone; nothing was touched", cause);
	}
	ret = image_read_one(tree->options->images_dirfd, tree->failure, IMAGE_CORE, entry->pid, &message);
	if (ret)
		return ret;
	core = (const CoreEntry *)message;
	task->was_stopped = core->tc && core->tc->task_state == TASK_STATE_STOPPED;
	image_message_free(message);
	return 0;
}

static int check_task_in_images(struct stopped_tree *tree, struct stopped_task *task, PstreeEntry **entries,
				size_t count)
{
	for (size_t i = 0; i < count; i++)
		if ((pid_t)entries[i]->pid == task->pid)
			return check_entry(tree, task, entries[i]);
	return fail_not_in_images(tree, task);
}

static int read_pstree(struct stopped_tree *tree, PstreeEntry ***ret_entries, size_t *ret_count)
{
	PstreeEntry **entries = NULL;
	size_t count = 0, capacity = 0;
	ProtobufCMessage *message;
	struct image *image;
	int ret = image_open(tree->options->images_dirfd, tree->failure, IMAGE_PSTREE, 0, &image);

	if (ret == -ENOENT && !failure_is_set(tree->failure))
		return fail(tree->failure, ENOENT, "image-missing", "pstree.img", NULL,
			    "there is no dump in the images directory");
	if (ret)
		return ret;
	while ((ret = image_read(image, &message)) > 0) {
		ARRAY_GROW(entries, count, capacity);
		entries[count++] = (PstreeEntry *)message;
	}
	image_close(&image);
	*ret_entries = entries;
	*ret_count = count;
	return ret;
}

static int check_images(struct stopped_tree *tree)
{
	PstreeEntry **entries = NULL;
	size_t count = 0;
	int ret;

	if (tree->options->images_dirfd < 0)
		return 0;
	ret = read_pstree(tree, &entries, &count);
	if (!ret && (!count || (pid_t)entries[0]->pid != tree->options->pid))
		ret = fail_not_in_images(tree, &tree->tasks[0]);
	for (size_t i = 0; i < tree->count && !ret; i++)
		ret = check_task_in_images(tree, &tree->tasks[i], entries, count);
	for (size_t i = 0; i < count; i++)
		image_message_free(&entries[i]->base);
	free(entries);
	return ret;
}

/* The network namespaces of the tree, where the locks are; after the end of the tasks nobody could find them. */
static void collect_netns(struct stopped_tree *tree)
{
	tree->netns_fds = xcalloc(tree->count, sizeof(*tree->netns_fds));
	tree->netns_inodes = xcalloc(tree->count, sizeof(*tree->netns_inodes));
	for (size_t i = 0; i < tree->count; i++) {
		struct stat stat;
		size_t known = 0;
		int fd;

		if (fstatat(tree->tasks[i].proc_dirfd, "ns/net", &stat, 0))
			continue; /* a zombie has none */
		while (known < tree->netns_count && tree->netns_inodes[known] != stat.st_ino)
			known++;
		if (known < tree->netns_count)
			continue;
		fd = openat(tree->tasks[i].proc_dirfd, "ns/net", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		tree->netns_inodes[tree->netns_count] = stat.st_ino;
		tree->netns_fds[tree->netns_count++] = fd;
	}
}

/* The whole tree, known to be stopped and to fit the images. */
static int tree_collect(struct stopped_tree *tree)
{
	int ret;

	if (tree->options->pid <= 0)
		return fail(tree->failure, EINVAL, "pid-invalid", NULL, "give the root of the tree with --tree PID",
			    "%d is not a pid", tree->options->pid);
	ret = add_task(tree, tree->options->pid);
	if (!ret)
		ret = check_not_ancestor(tree);
	for (size_t i = 0; i < tree->count && !ret; i++)
		ret = add_children(tree, i);
	if (!ret && is_dead(tree->tasks[0].stat.state) && tree->count == 1)
		ret = fail_task(tree, &tree->tasks[0], ESRCH, "pid-missing", NULL, "has ended already");
	for (size_t i = 0; i < tree->count && !ret; i++)
		ret = check_stopped(tree, &tree->tasks[i]);
	if (!ret)
		ret = check_images(tree);
	if (!ret)
		collect_netns(tree);
	return ret;
}

/* A descriptor of ours for a connected TCP socket of the task, or -1 if the descriptor is anything else. */
static int get_connection(const struct stopped_task *task, int number)
{
	_cleanup_free_ char *link = NULL;
	_cleanup_fd_ int fd = -1;
	enum tcp_state state;
	char path[32];
	int domain = 0, protocol = 0;
	socklen_t size = sizeof(int);

	snprintf(path, sizeof(path), "fd/%d", number);
	if (read_link_at(task->proc_dirfd, path, &link) || strncmp(link, "socket:", strlen("socket:")))
		return -1;
	fd = pidfd_getfd(task->pidfd, number, 0);
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) ||
	    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size))
		return -1;
	if ((domain != AF_INET && domain != AF_INET6) || protocol != IPPROTO_TCP || tcp_state_read(fd, &state) ||
	    !tcp_state_is_connected(state))
		return -1;
	return TAKE_FD(fd);
}

/* Applies @action to each connection of the tree; a socket that several tasks share is met several times. */
static void each_connection(struct stopped_tree *tree, void (*action)(const struct stopped_task *task, int fd))
{
	for (size_t i = 0; i < tree->count; i++) {
		_cleanup_free_ int *numbers = NULL;
		size_t count = 0;

		if (proc_list_numbers(tree->tasks[i].proc_dirfd, "fd", &numbers, &count))
			continue;
		for (size_t k = 0; k < count; k++) {
			_cleanup_fd_ int fd = get_connection(&tree->tasks[i], numbers[k]);

			if (fd >= 0)
				action(&tree->tasks[i], fd);
		}
	}
}

/* In repair mode the last close of the socket sends neither FIN nor RST. */
static void silence(const struct stopped_task *task, int fd)
{
	int reuse;
	int ret = tcp_repair_begin(fd, &reuse);

	if (ret)
		log_warn("task %d: the peer will see a connection end: %s", task->pid, strerror(-ret));
}

/* A dump that was killed in the wrong microsecond leaves a socket in repair mode. */
static void give_voice(const struct stopped_task *task, int fd)
{
	int repair = 0;
	socklen_t size = sizeof(repair);

	if (!getsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repair, &size) && repair)
		tcp_repair_end(fd, 0);
}

static int remove_locks(struct stopped_tree *tree)
{
	int ret = 0;

	for (size_t i = 0; i < tree->netns_count && !ret; i++)
		ret = network_lock_remove_for(tree->failure, tree->netns_fds[i], tree->options->pid);
	return ret;
}

static int kill_all(struct stopped_tree *tree)
{
	unsigned int timeout_s = tree->options->timeout_seconds;
	int timeout_ms = timeout_s && timeout_s < INT_MAX / 1000 ? (int)timeout_s * 1000 : -1;

	for (size_t i = 0; i < tree->count; i++) {
		const struct stopped_task *task = &tree->tasks[i];

		if (pidfd_send_signal(task->pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
			return fail_errno(tree->failure, errno, "kill", NULL, NULL, "cannot kill process %d",
					  task->pid);
	}
	for (size_t i = 0; i < tree->count; i++) {
		struct pollfd death = {.fd = tree->tasks[i].pidfd, .events = POLLIN};

		if (poll(&death, 1, timeout_ms) != 1)
			return fail_task(tree, &tree->tasks[i], ETIMEDOUT, "kill", NULL,
					 "was killed, but does not end");
	}
	return 0;
}

static int continue_all(struct stopped_tree *tree)
{
	for (size_t i = 0; i < tree->count; i++) {
		const struct stopped_task *task = &tree->tasks[i];

		if (task->was_stopped || is_dead(task->stat.state))
			continue;
		if (pidfd_send_signal(task->pidfd, SIGCONT, NULL, 0) && errno != ESRCH)
			return fail_errno(tree->failure, errno, "resume", NULL, NULL, "cannot continue process %d",
					  task->pid);
	}
	return 0;
}

int stopped_tree_kill(const struct stopped_options *options, struct failure *failure)
{
	struct stopped_tree tree = {.options = options, .failure = failure};
	int ret = tree_collect(&tree);

	if (!ret) {
		each_connection(&tree, silence);
		ret = kill_all(&tree);
	}
	if (!ret)
		ret = remove_locks(&tree);
	tree_release(&tree);
	return ret;
}

int stopped_tree_resume(const struct stopped_options *options, struct failure *failure)
{
	struct stopped_tree tree = {.options = options, .failure = failure};
	int ret = tree_collect(&tree);

	if (!ret) {
		each_connection(&tree, give_voice);
		ret = remove_locks(&tree);
	}
	if (!ret)
		ret = continue_all(&tree);
	tree_release(&tree);
	return ret;
}
