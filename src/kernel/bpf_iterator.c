/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel/bpf_iterator.h"

#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

/* A new descriptor, or -errno. */
static int bpf(int command, union bpf_attr *attributes)
{
	int fd = (int)syscall(SYS_bpf, command, attributes, sizeof(*attributes));

	return fd < 0 ? -errno : fd;
}

int bpf_iterator_load(int64_t target, const struct bpf_insn *program, size_t count, const char *name)
{
	union bpf_attr attributes = {
		.prog_type = BPF_PROG_TYPE_TRACING,
		.expected_attach_type = BPF_TRACE_ITER,
		.attach_btf_id = (__u32)target,
		.insns = (uint64_t)program,
		.insn_cnt = (__u32)count,
		.license = (uint64_t) "Dual BSD/GPL",
	};

	snprintf(attributes.prog_name, sizeof(attributes.prog_name), "%s", name);
	return bpf(BPF_PROG_LOAD, &attributes);
}

static int open_over(int program_fd, const union bpf_iter_link_info *link_info)
{
	union bpf_attr link = {.link_create = {
				       .prog_fd = (__u32)program_fd,
				       .attach_type = BPF_TRACE_ITER,
				       .iter_info = (uint64_t)link_info,
				       .iter_info_len = sizeof(*link_info),
			       }};
	_cleanup_fd_ int link_fd = bpf(BPF_LINK_CREATE, &link);
	union bpf_attr iterator = {.iter_create = {.link_fd = (__u32)link_fd}};

	return link_fd < 0 ? link_fd : bpf(BPF_ITER_CREATE, &iterator);
}

int bpf_iterator_open(int program_fd, pid_t tid)
{
	const union bpf_iter_link_info link_info = {.task = {.tid = (__u32)tid}};

	return open_over(program_fd, &link_info);
}

int bpf_iterator_open_process(int program_fd, pid_t pid)
{
	const union bpf_iter_link_info link_info = {.task = {.pid = (__u32)pid}};

	return open_over(program_fd, &link_info);
}
