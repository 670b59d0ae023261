/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/root.h"

#include <stdio.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "kernel/proc.h"

/* All of its threads are on their way out: its memory is gone before anybody can wait for it. */
static bool is_exiting(pid_t pid)
{
	enum { PF_EXITING = 4 };
	_cleanup_fd_ int proc_dirfd = proc_open(pid);
	_cleanup_free_ int *threads = NULL;
	size_t count = 0;
	struct proc_stat stat;
	char path[40];

	if (proc_dirfd < 0 || proc_list_numbers(proc_dirfd, "task", &threads, &count) < 0)
		return true;
	for (size_t i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "task/%d/stat", threads[i]);
		if (proc_read_stat(proc_dirfd, path, &stat) == 0 && !(stat.flags & PF_EXITING))
			return false;
	}
	return true;
}

bool root_has_ended(pid_t pid, uint64_t start_time, int *ret_status)
{
	_cleanup_fd_ int proc_dirfd = proc_open(pid);
	siginfo_t info = {};
	struct proc_stat stat;

	*ret_status = -1;
	bool is_there = proc_dirfd >= 0 && !proc_read_stat(proc_dirfd, "stat", &stat) && stat.start_time == start_time;
	if (is_there && !is_exiting(pid))
		return false;
	if (waitid(P_PID, pid, &info, WEXITED | WNOWAIT | __WALL | (is_there ? 0 : WNOHANG)) == 0 && info.si_pid)
		*ret_status = info.si_code == CLD_EXITED   ? W_EXITCODE(info.si_status, 0)
			      : info.si_code == CLD_DUMPED ? info.si_status | WCOREFLAG
							   : info.si_status;
	return true;
}
