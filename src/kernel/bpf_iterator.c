/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel/bpf_iterator.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
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

enum { INSTRUCTIONS_OF_A_READING = 6, FIRST_INSTRUCTIONS = 5, LAST_INSTRUCTIONS = 7 };

static size_t add_reading(struct bpf_insn *program, const struct bpf_reading *reading, int record_bytes)
{
	const int into = (int)reading->into - record_bytes;
	const struct bpf_insn copy[] = {
		bpf_load(BPF_REG_1, BPF_REG_8, reading->offset),
		bpf_store(BPF_REG_10, into, BPF_REG_1),
	};
	const struct bpf_insn probe[INSTRUCTIONS_OF_A_READING] = {
		bpf_move(BPF_REG_1, BPF_REG_10),
		bpf_add(BPF_REG_1, into),
		bpf_set(BPF_REG_2, reading->bytes),
		reading->from < 0 ? bpf_move(BPF_REG_3, BPF_REG_6)
				  : bpf_load(BPF_REG_3, BPF_REG_10, reading->from - record_bytes),
		bpf_add(BPF_REG_3, reading->offset),
		bpf_call(BPF_FUNC_probe_read_kernel),
	};

	if (reading->from == BPF_FROM_CONTEXT) {
		memcpy(program, copy, sizeof(copy));
		return ARRAY_SIZE(copy);
	}
	memcpy(program, probe, sizeof(probe));
	return ARRAY_SIZE(probe);
}

int bpf_iterator_load_readings(int64_t target, int object, const struct bpf_reading *readings, size_t count,
			       size_t record_bytes, const char *name)
{
	const int size = (int)record_bytes, word = sizeof(uint64_t);
	const struct bpf_insn last[LAST_INSTRUCTIONS] = {BPF_WRITE_AND_END(size)};
	_cleanup_free_ struct bpf_insn *program = xcalloc(FIRST_INSTRUCTIONS + record_bytes / sizeof(uint64_t) +
								  count * INSTRUCTIONS_OF_A_READING + LAST_INSTRUCTIONS,
							  sizeof(*program));
	size_t used = 0;

	program[used++] = bpf_move(BPF_REG_8, BPF_REG_1);
	program[used++] = bpf_load(BPF_REG_6, BPF_REG_1, object);
	size_t skip = used++; /* none: the end */
	program[used++] = bpf_load(BPF_REG_7, BPF_REG_1, BPF_CONTEXT_META);
	program[used++] = bpf_set(BPF_REG_0, 0);
	for (int at = 0; at < size; at += word)
		program[used++] = bpf_store(BPF_REG_10, at - size, BPF_REG_0);
	for (size_t i = 0; i < count; i++) {
		if (readings[i].offset < 0)
			return -EOPNOTSUPP;
		used += add_reading(&program[used], &readings[i], size);
	}
	memcpy(&program[used], last, sizeof(last));
	used += LAST_INSTRUCTIONS;
	/* To the last two: a result of 0, and the exit. */
	program[skip] = bpf_skip_if_zero(BPF_REG_6, (int)(used - 2 - (skip + 1)));
	return bpf_iterator_load(target, program, used, name);
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

size_t bpf_iterator_read(int fd, void *records, size_t record_bytes, size_t room)
{
	size_t bytes = 0;

	while (bytes < room * record_bytes) {
		ssize_t got = read(fd, (char *)records + bytes, room * record_bytes - bytes);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got <= 0)
			break;
		bytes += (size_t)got;
	}
	return bytes / record_bytes;
}
