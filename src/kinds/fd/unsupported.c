/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What no other row of the table knows. It matches everything, so it must be the last row: its dump is the one place
 * that tells a user what the program holds and why it cannot be moved.
 */
#include "kinds/fd/fd_kind.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "kinds/mem/mem_kind.h"

#define CLOSE_IT "its owner must close it before the dump"

static const struct {
	const char *link;
	const char *what;
	const char *hint;
} known[] = {
	{"anon_inode:[io_uring]", "an io_uring", IO_URING_HINT},
	{"anon_inode:[userfaultfd]", "a userfaultfd", CLOSE_IT},
	{"anon_inode:[fanotify]", "a fanotify group", CLOSE_IT},
	{"anon_inode:[perf_event]", "a perf event", "stop profiling before the dump"},
	{"anon_inode:bpf-map", "a BPF map", CLOSE_IT},
	{"anon_inode:bpf-prog", "a BPF program", CLOSE_IT},
	{"anon_inode:kvm", "a virtual machine (kvm)", "migrate the virtual machine with its own monitor"},
	{"anon_inode:[landlock-ruleset]", "a landlock ruleset", CLOSE_IT},
	{"anon_inode:bpf_link", "a BPF link", CLOSE_IT},
	{"anon_inode:bpf-link", "a BPF link", CLOSE_IT},
	{"anon_inode:bpf_iter", "a BPF iterator", CLOSE_IT},
	{"anon_inode:btf", "BPF type information", CLOSE_IT},
	{"anon_inode:[fscontext]", "a file system that is being configured (fsopen)", CLOSE_IT},
	{"anon_inode:[mount", "a mount", CLOSE_IT},
	{"anon_inode:sync_file", "a fence of a graphics device (sync_file)", CLOSE_IT},
	{"anon_inode:[vfio", "a device given to user space (VFIO)", CLOSE_IT},
	{"anon_inode:[iommufd]", "an IOMMU (iommufd)", CLOSE_IT},
	{"/dmabuf:", "a buffer of a device (dma-buf)", CLOSE_IT},
	{"mnt:[", "a mount namespace", CLOSE_IT},
	{"pid:[", "a pid namespace", CLOSE_IT},
	{"net:[", "a network namespace", CLOSE_IT},
	{"ipc:[", "an IPC namespace", CLOSE_IT},
	{"uts:[", "a host name namespace (UTS)", CLOSE_IT},
	{"user:[", "a user namespace", CLOSE_IT},
	{"time:[", "a time namespace", CLOSE_IT},
	{"cgroup:[", "a control group namespace", CLOSE_IT},
	{"anon_inode:seccomp notify", "a seccomp notification descriptor", CLOSE_IT},
};

static const struct {
	int family;
	const char *what;
} socket_families[] = {
	{AF_PACKET, "a packet socket (AF_PACKET, as tcpdump and DHCP clients have)"},
	{AF_VSOCK, "a socket between a virtual machine and its host (AF_VSOCK)"},
	{AF_XDP, "an XDP socket (AF_XDP)"},
	{AF_ALG, "a socket of the kernel's ciphers (AF_ALG)"},
	{AF_KEY, "an IPsec key socket (AF_KEY)"},
	{AF_BLUETOOTH, "a Bluetooth socket"},
	{AF_CAN, "a CAN bus socket (AF_CAN)"},
	{AF_TIPC, "a TIPC socket"},
	{AF_SMC, "an SMC socket (AF_SMC)"},
	{AF_RDS, "an RDS socket"},
	{AF_PPPOX, "a PPP socket (AF_PPPOX)"},
	{AF_NFC, "an NFC socket"},
};

/* Its link only has a number. */
static int refuse_socket(struct dump *dump, const struct target_fd *target)
{
	int family = 0;
	socklen_t size = sizeof(family);

	if (getsockopt(target->fd, SOL_SOCKET, SO_DOMAIN, &family, &size) < 0)
		family = 0;
	for (size_t i = 0; i < ARRAY_SIZE(socket_families); i++)
		if (socket_families[i].family == family)
			return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, CLOSE_IT,
				    "%s cannot be checkpointed", socket_families[i].what);
	return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, CLOSE_IT,
		    "a socket of family %d cannot be checkpointed", family);
}

static bool unsupported_match(const struct target_fd *target)
{
	return true;
}

static int unsupported_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	if (S_ISSOCK(target->stat.st_mode) && !(target->flags & O_PATH))
		return refuse_socket(dump, target);
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strncmp(target->link, known[i].link, strlen(known[i].link)))
			return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, known[i].hint,
				    "%s cannot be checkpointed", known[i].what);
	return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, CLOSE_IT,
		    "\"%s\" is of a kind that cannot be checkpointed", target->link);
}

static int unsupported_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	return fail(&restore->failure, EOPNOTSUPP, "image-file-kind", NULL, NULL,
		    "files.img: file %u is of a kind (%d) that this release cannot restore", file->id,
		    file->entry->type);
}

const struct fd_kind unsupported_kind = {
	.name = "unsupported",
	.match = unsupported_match,
	.dump = unsupported_dump,
	.open = unsupported_open,
};
