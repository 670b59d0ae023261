/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A version number says nothing about what a distribution has switched off, and a capability may be missing in a
 * container. So each interface is used once, on this process or on a child made for it, and nothing else is believed.
 * Only the errors that mean "not there" or "not allowed" count as missing.
 */
#include "kernel/features.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "kernel/uapi.h"

/* Newer than the headers of the oldest system that criu is built on. */
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#ifndef PTRACE_SECCOMP_GET_FILTER
#define PTRACE_SECCOMP_GET_FILTER 0x420c
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif
#define PR_TIMER_RESTORE_IDS 77
#define PR_TIMER_RESTORE_IDS_GET 2
#define FEATURE_WP_UNPOPULATED (UINT64_C(1) << 13)
#define FEATURE_WP_ASYNC (UINT64_C(1) << 15)
#define USER_MODE_ONLY 1

enum { PAGEMAP_ENTRY_BYTES = 8 };

/* Makes a child that waits, seizes and stops it, asks @question about it and ends it. */
static bool ask_tracee(bool (*question)(pid_t tracee))
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return false;
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	bool answer = ptrace(PTRACE_SEIZE, child, NULL, 0) == 0 && ptrace(PTRACE_INTERRUPT, child, NULL, NULL) == 0 &&
		      waitpid(child, &status, __WALL) == child && WIFSTOPPED(status) && question(child);
	kill(child, SIGKILL);
	waitpid(child, &status, __WALL);
	return answer;
}

static bool ask_seized(pid_t tracee)
{
	return true;
}

static bool ask_rseq(pid_t tracee)
{
	char configuration[64];

	return ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tracee, sizeof(configuration), configuration) > 0;
}

static bool ask_seccomp_suspend(pid_t tracee)
{
	return ptrace(PTRACE_SETOPTIONS, tracee, NULL, PTRACE_O_SUSPEND_SECCOMP) == 0;
}

static bool ask_seccomp_filters(pid_t tracee)
{
	/* The child has no filter, which is another error than having no right to ask. */
	return ptrace(PTRACE_SECCOMP_GET_FILTER, tracee, NULL, NULL) >= 0 || errno == EINVAL || errno == ENOENT;
}

static bool probe_ptrace_seize(void)
{
	return ask_tracee(ask_seized);
}

static bool probe_rseq_configuration(void)
{
	return ask_tracee(ask_rseq);
}

static bool probe_seccomp_suspend(void)
{
	return ask_tracee(ask_seccomp_suspend);
}

static bool probe_seccomp_filters(void)
{
	return ask_tracee(ask_seccomp_filters);
}

static bool probe_pidfd_open(void)
{
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);

	return pidfd >= 0;
}

static bool probe_pidfd_getfd(void)
{
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	_cleanup_fd_ int copy = (int)syscall(SYS_pidfd_getfd, pidfd, pidfd, 0);

	return copy >= 0;
}

static bool probe_clone3_set_tid(void)
{
	/* A pid that is in use is refused with EEXIST, which only comes after the right to choose one was checked. */
	pid_t wanted = getpid();
	struct {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
			set_tid_size;
	} arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};
	long child = syscall(SYS_clone3, &arguments, sizeof(arguments));

	return child < 0 && errno == EEXIST;
}

static bool probe_kcmp(void)
{
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0) == 0;
}

static bool probe_kcmp_epoll(void)
{
	_cleanup_fd_ int epoll = epoll_create1(EPOLL_CLOEXEC);
	_cleanup_fd_ int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN};
	struct kcmp_epoll_slot slot = {.efd = epoll, .tfd = timer};

	return epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event) == 0 &&
	       syscall(SYS_kcmp, getpid(), getpid(), KCMP_EPOLL_TFD, timer, &slot) == 0;
}

static bool probe_set_mm_map(void)
{
	unsigned int size;

	return prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &size, 0, 0) == 0;
}

static void *map_page(void)
{
	void *page = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return page == MAP_FAILED ? NULL : page;
}

static void unmap_page(void *page)
{
	munmap(*(void **)page, getpagesize());
}

#define _cleanup_page_ __attribute__((cleanup(unmap_page)))

static bool probe_pagemap_scan(void)
{
	_cleanup_fd_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	_cleanup_page_ void *page = map_page();
	struct page_region region;
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.start = (uintptr_t)page,
		.end = (uintptr_t)page + getpagesize(),
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_anyof_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};

	return ioctl(pagemap, PAGEMAP_SCAN, &scan) >= 0;
}

/* The pagemap entry of a page that has been written to; 0 = it cannot be read. */
static uint64_t pagemap_entry(volatile char *page)
{
	_cleanup_fd_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	off_t offset = (off_t)((uintptr_t)page / getpagesize() * PAGEMAP_ENTRY_BYTES);
	uint64_t entry;

	*page = 1;
	return pread_full(pagemap, &entry, sizeof(entry), offset) < 0 ? 0 : entry;
}

static bool probe_pagemap_pfn(void)
{
	_cleanup_page_ void *page = map_page();

	/* Without CAP_SYS_ADMIN the frame number, bits 0 to 54, reads as zero. */
	return page && (pagemap_entry(page) & ((UINT64_C(1) << 55) - 1));
}

static bool probe_soft_dirty(void)
{
	_cleanup_page_ void *page = map_page();

	return page && (pagemap_entry(page) & (UINT64_C(1) << 55));
}

static bool probe_guard_pages(void)
{
	_cleanup_page_ void *page = map_page();

	return page && madvise(page, getpagesize(), MADV_GUARD_INSTALL) == 0;
}

static bool probe_tcp_repair(void)
{
	_cleanup_fd_ int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;

	return setsockopt(socket_fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)) == 0;
}

static bool probe_unix_peek_offset(void)
{
	_cleanup_fd_ int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int offset = 0;

	return setsockopt(socket_fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) == 0;
}

/* Sends one netlink request and tells whether the answer is anything but an error. */
static bool ask_netlink(int protocol, void *request, size_t size)
{
	_cleanup_fd_ int socket_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	struct timeval patience = {.tv_sec = 2};
	char answer[8192];

	if (socket_fd < 0 || setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    send(socket_fd, request, size, 0) < 0)
		return false;
	ssize_t length = recv(socket_fd, answer, sizeof(answer), 0);
	const struct nlmsghdr *header = (const void *)answer;
	return length >= (ssize_t)sizeof(*header) && header->nlmsg_type != NLMSG_ERROR;
}

static bool probe_sock_diag(void)
{
	struct {
		struct nlmsghdr header;
		struct unix_diag_req body;
	} request = {
		.header = {.nlmsg_len = sizeof(request),
			   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.body = {.sdiag_family = AF_UNIX},
	};

	return ask_netlink(NETLINK_SOCK_DIAG, &request, sizeof(request));
}

static bool probe_nftables(void)
{
	struct {
		struct nlmsghdr header;
		struct nfgenmsg body;
	} request = {
		.header = {.nlmsg_len = sizeof(request),
			   .nlmsg_type = (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETGEN,
			   .nlmsg_flags = NLM_F_REQUEST},
		.body = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0},
	};

	return ask_netlink(NETLINK_NETFILTER, &request, sizeof(request));
}

static bool probe_timer_restore_ids(void)
{
	return prctl(PR_TIMER_RESTORE_IDS, PR_TIMER_RESTORE_IDS_GET, 0, 0, 0) >= 0;
}

static bool probe_time_namespace(void)
{
	return access("/proc/self/timens_offsets", F_OK) == 0;
}

/* A userfaultfd of this process accepts @features. */
static bool userfaultfd_has(int flags, uint64_t features)
{
	_cleanup_fd_ int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
	struct uffdio_api api = {.api = UFFD_API, .features = features};

	return fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0;
}

static bool probe_userfaultfd(void)
{
	return userfaultfd_has(USER_MODE_ONLY, 0);
}

static bool probe_uffd_noncoop(void)
{
	return userfaultfd_has(0, UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP |
					  UFFD_FEATURE_EVENT_REMOVE);
}

static bool probe_write_tracking(void)
{
	return userfaultfd_has(USER_MODE_ONLY, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED);
}

static bool probe_timerfd_ticks(void)
{
	_cleanup_fd_ int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	uint64_t ticks = 1;

	return ioctl(fd, _IOW('T', 0, uint64_t), &ticks) == 0;
}

static bool probe_sys_resource(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};

	return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & (1u << CAP_SYS_RESOURCE));
}

/* Names that CRIU has for a feature are kept. */
const struct feature_description feature_descriptions[FEATURE_COUNT] = {
	[FEATURE_PTRACE_SEIZE] = {"ptrace_seize", "stop a task without a signal that it could see", true},
	[FEATURE_PIDFD_OPEN] = {"pidfd_open", "hold on to a task that may end", true},
	[FEATURE_PIDFD_GETFD] = {"pidfd_getfd", "look at a task's open files from outside", true},
	[FEATURE_CLONE3_SET_TID] = {"clone3_set_tid", "give restored tasks their pids", true},
	[FEATURE_KCMP] = {"kcmp", "see which tasks and descriptors share an object", true},
	[FEATURE_KCMP_EPOLL] = {"kcmp_epoll", "find the files that an epoll watches", false},
	[FEATURE_SET_MM_MAP] = {"set_mm_map", "restore where stack, heap and arguments lie", true},
	[FEATURE_PAGEMAP_SCAN] = {"pagemap_scan", "find the pages in use without looking at each", true},
	[FEATURE_PAGEMAP_PFN] = {"pagemap_pfn", "see which pages forked tasks still share", false},
	[FEATURE_TCP_REPAIR] = {"tcp_repair", "dump and restore established TCP connections", false},
	[FEATURE_UNIX_PEEK_OFFSET] = {"unix_peek_offset", "read queued bytes of sockets without taking them", true},
	[FEATURE_SOCK_DIAG] = {"sock_diag", "learn the state and the peers of sockets", true},
	[FEATURE_NFTABLES] = {"network_lock_nftables", "hold back packets of dumped connections", false},
	[FEATURE_SECCOMP_SUSPEND] = {"seccomp_suspend", "work inside of tasks with seccomp filters", false},
	[FEATURE_SECCOMP_FILTERS] = {"seccomp_filters", "dump seccomp filters", false},
	[FEATURE_RSEQ_CONFIGURATION] = {"get_rseq_conf", "dump the restartable sequences of threads", false},
	[FEATURE_TIMER_RESTORE_IDS] = {"timer_cr_ids", "restore POSIX timers with their ids at once", false},
	[FEATURE_TIME_NAMESPACE] = {"timens", "keep monotonic clocks going on another machine", false},
	[FEATURE_USERFAULTFD] = {"uffd", "follow and fill memory of running tasks", false},
	[FEATURE_UFFD_NONCOOP] = {"uffd-noncoop", "bring memory after the restore", false},
	[FEATURE_WRITE_TRACKING] = {"write_tracking", "follow writes to memory while the tree runs", false},
	[FEATURE_SOFT_DIRTY] = {"soft_dirty", "the older way to follow writes to memory", false},
	[FEATURE_GUARD_PAGES] = {"guard_pages", "restore guard regions of memory", false},
	[FEATURE_TIMERFD_TICKS] = {"timerfd", "restore expirations of timerfds that were not read", false},
	[FEATURE_SYS_RESOURCE] = {"cap_sys_resource", "raise limits of restored tasks above criu's own", false},
};

static bool (*const probes[FEATURE_COUNT])(void) = {
	[FEATURE_PTRACE_SEIZE] = probe_ptrace_seize,
	[FEATURE_PIDFD_OPEN] = probe_pidfd_open,
	[FEATURE_PIDFD_GETFD] = probe_pidfd_getfd,
	[FEATURE_CLONE3_SET_TID] = probe_clone3_set_tid,
	[FEATURE_KCMP] = probe_kcmp,
	[FEATURE_KCMP_EPOLL] = probe_kcmp_epoll,
	[FEATURE_SET_MM_MAP] = probe_set_mm_map,
	[FEATURE_PAGEMAP_SCAN] = probe_pagemap_scan,
	[FEATURE_PAGEMAP_PFN] = probe_pagemap_pfn,
	[FEATURE_TCP_REPAIR] = probe_tcp_repair,
	[FEATURE_UNIX_PEEK_OFFSET] = probe_unix_peek_offset,
	[FEATURE_SOCK_DIAG] = probe_sock_diag,
	[FEATURE_NFTABLES] = probe_nftables,
	[FEATURE_SECCOMP_SUSPEND] = probe_seccomp_suspend,
	[FEATURE_SECCOMP_FILTERS] = probe_seccomp_filters,
	[FEATURE_RSEQ_CONFIGURATION] = probe_rseq_configuration,
	[FEATURE_TIMER_RESTORE_IDS] = probe_timer_restore_ids,
	[FEATURE_TIME_NAMESPACE] = probe_time_namespace,
	[FEATURE_USERFAULTFD] = probe_userfaultfd,
	[FEATURE_UFFD_NONCOOP] = probe_uffd_noncoop,
	[FEATURE_WRITE_TRACKING] = probe_write_tracking,
	[FEATURE_SOFT_DIRTY] = probe_soft_dirty,
	[FEATURE_GUARD_PAGES] = probe_guard_pages,
	[FEATURE_TIMERFD_TICKS] = probe_timerfd_ticks,
	[FEATURE_SYS_RESOURCE] = probe_sys_resource,
};

bool kernel_feature_probe(enum kernel_feature feature)
{
	return probes[feature]();
}

void kernel_features_probe(struct kernel_features *ret_features)
{
	for (size_t i = 0; i < FEATURE_COUNT; i++)
		ret_features->has[i] = probes[i]();
}
