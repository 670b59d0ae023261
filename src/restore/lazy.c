/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The task makes the userfaultfd itself: it belongs to the address space of whoever makes it. From the registration on,
 * a missing page is a question to the daemon, also when the kernel itself asks (read(2), the rseq area), so nothing of
 * what the restore still does with the task can find zeros. Mappings that collide with criu's are registered where they
 * are; the daemon sees them move.
 *
 * The task's own descriptor is closed only when the daemon has said that two processes hold it.
 */
#include "restore/lazy.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "base/fd.h"
#include "kinds/mem/mem_kind.h"
#include "model/lazy_memory.h"
#include "restore/files.h"
#include "restore/memory.h"

#define EVENTS \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP)

int lazy_connect(struct restore *restore)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};

	if (!restore->options->lazy_pages)
		return 0;
	snprintf(name.sun_path, sizeof(name.sun_path), "/proc/self/fd/%d/" LAZY_SOCKET_NAME,
		 restore->options->work_dirfd);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&name, sizeof(name)) < 0)
		return fail_errno(&restore->failure, errno, "lazy-daemon", LAZY_SOCKET_NAME,
				  "start `criu lazy-pages` first, with the same --images-dir or --work-dir",
				  "cannot reach the daemon that brings the memory");
	restore->lazy_fd = TAKE_FD(fd);
	page_chain_allow_lazy(restore->page_chain);
	return 0;
}

bool lazy_mapping(const struct restore *restore, const VmaEntry *vma)
{
	const struct mem_kind *kind = mem_kind_of_entry(vma);

	return restore->lazy_fd >= 0 && !restore->options->preload && vma->status & VMA_STATUS_ANON_PRIVATE &&
	       !(vma->flags & MAP_LOCKED) &&
	       !(vma->status & (VMA_STATUS_VDSO | VMA_STATUS_VVAR | VMA_STATUS_VSYSCALL)) && kind && !kind->is_special;
}

static bool overlaps(const struct page_places *places, const VmaEntry *vma)
{
	size_t index = page_places_find(places, vma->start);

	return index < places->count && places->items[index].address < vma->end;
}

bool lazy_pages_missing(const struct restore *restore, const struct restore_task *task, const VmaEntry *vma)
{
	if (task->memory->later)
		return overlaps(task->memory->later, vma);
	return lazy_mapping(restore, vma) && overlaps(task->memory->places, vma);
}

static int fail_lazy(struct restore *restore, int error, const char *what)
{
	return fail_errno(&restore->failure, error, "lazy-register", restore_task_name(restore, restore->self),
			  error == EPERM ? "run criu as root" : NULL, "%s", what);
}

static int open_userfaultfd(struct restore *restore, int *ret_fd)
{
	struct uffdio_api api = {.api = UFFD_API, .features = EVENTS};
	_cleanup_fd_ int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		return fail_lazy(restore, errno, "cannot make a userfaultfd");
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int register_mappings(struct restore *restore, int userfault_fd, struct lazy_ranges *ranges)
{
	const struct restore_task *task = restore->self;

	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		struct uffdio_register range = {
			.range = {task->memory->placed[i], vma->end - vma->start},
			.mode = UFFDIO_REGISTER_MODE_MISSING,
		};
		if (!lazy_pages_missing(restore, task, vma))
			continue;
		if (ioctl(userfault_fd, UFFDIO_REGISTER, &range) < 0)
			return fail_lazy(restore, errno, "cannot register its memory with a userfaultfd");
		ARRAY_GROW(ranges->items, ranges->count, ranges->capacity);
		ranges->items[ranges->count++] = (struct lazy_range){range.range.start, range.range.len, vma->start};
	}
	return 0;
}

static int send_offer(struct restore *restore, const int fds[LAZY_OFFER_FDS])
{
	struct lazy_offer offer = {LAZY_OFFER_MAGIC, (uint32_t)restore->self->pid};
	struct iovec part = {&offer, sizeof(offer)};
	char control[CMSG_SPACE(LAZY_OFFER_FDS * sizeof(int))] = {};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(LAZY_OFFER_FDS * sizeof(int));
	memcpy(CMSG_DATA(head), fds, LAZY_OFFER_FDS * sizeof(int));
	return sendmsg(restore->lazy_fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int offer_and_wait(struct restore *restore, int userfault_fd, int state_fd)
{
	char byte;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return fail_lazy(restore, errno, "socketpair");
	_cleanup_fd_ int answer_fd = pair[0];
	int error = send_offer(restore, (const int[]){userfault_fd, state_fd, pair[1]});
	close(pair[1]);
	if (!error)
		error = read_full(answer_fd, &byte, sizeof(byte));
	return error ? fail(&restore->failure, -error, "lazy-daemon", LAZY_SOCKET_NAME, "its log says why",
			    "`criu lazy-pages` has ended before it took the memory over")
		     : 0;
}

int lazy_prepare(struct restore *restore)
{
	if (restore->lazy_fd < 0 || !restore->options->preload || prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0)
		return 0;
	return fail_lazy(restore, errno, "cannot keep huge pages away from its memory");
}

int lazy_hand_over(struct restore *restore)
{
	_cleanup_fd_ int userfault_fd = -1, state_fd = -1;
	struct lazy_ranges ranges = {};

	if (restore->lazy_fd < 0)
		return 0;
	int error = open_userfaultfd(restore, &userfault_fd);
	if (!error)
		error = register_mappings(restore, userfault_fd, &ranges);
	if (!error && ranges.count) {
		state_fd = lazy_state_create();
		error = state_fd < 0 ? state_fd : lazy_state_write(state_fd, restore->self->pid, &ranges);
		error = error ? fail_lazy(restore, error, "cannot note its ranges")
			      : offer_and_wait(restore, userfault_fd, state_fd);
	}
	free(ranges.items);
	/* From here on the kernel asks before it fills a page. What the task itself wants of huge pages comes later. */
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	return error;
}
