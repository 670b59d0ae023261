/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program, in C:
 *
 *	int each(struct bpf_iter__task *context)
 *	{
 *		struct { u64 monotonic_ns, boottime_ns; char block[BLOCK_BYTES]; } record;
 *
 *		if (context->task) {
 *			bpf_probe_read_kernel(record.block, BLOCK_BYTES, &context->task->restart_block);
 *			record.monotonic_ns = bpf_ktime_get_ns();
 *			record.boottime_ns = bpf_ktime_get_boot_ns();
 *			bpf_seq_write(context->meta->seq, &record, sizeof(record));
 *		}
 *		return 0;
 *	}
 *
 * The clocks are read by it too because the kernel counts without the offsets of a time namespace, in which criu may
 * be. Most of the block is a union. Which part of it holds is known from the call, and a block of another one shows in
 * the arguments that the kernel keeps beside the time.
 */
#include "kernel/restart_blocks.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/bpf_iterator.h"
#include "kernel/kernel_types.h"

enum { BLOCK_BYTES = 64 };

#define NS_PER_SECOND 1000000000LL

/* What the program writes. */
struct record {
	int64_t monotonic_ns, boottime_ns;
	char block[BLOCK_BYTES];
};

/* Of the words that we need, in the block. */
enum word {
	FUTEX_ADDRESS,
	FUTEX_VALUE,
	FUTEX_END_NS,
	POLL_ARRAY,
	POLL_COUNT,
	POLL_HAS_END,
	POLL_END_SECONDS,
	POLL_END_NS,
	SLEEP_CLOCK,
	SLEEP_END_NS,
	WORDS,
};

static const char *const word_names[WORDS] = {
	[FUTEX_ADDRESS] = "futex.uaddr",      [FUTEX_VALUE] = "futex.val",    [FUTEX_END_NS] = "futex.time",
	[POLL_ARRAY] = "poll.ufds",           [POLL_COUNT] = "poll.nfds",     [POLL_HAS_END] = "poll.has_timeout",
	[POLL_END_SECONDS] = "poll.tv_sec",   [POLL_END_NS] = "poll.tv_nsec", [SLEEP_CLOCK] = "nanosleep.clockid",
	[SLEEP_END_NS] = "nanosleep.expires",
};

struct restart_blocks {
	int program_fd; /* or -errno */
	int offsets[WORDS];
};

static int find_offsets(struct restart_blocks *blocks, const struct kernel_types *types)
{
	for (int word = 0; word < WORDS; word++) {
		blocks->offsets[word] = kernel_types_member(types, "restart_block", word_names[word]);
		if (blocks->offsets[word] < 0 || blocks->offsets[word] > BLOCK_BYTES - (int)sizeof(uint64_t))
			return -EOPNOTSUPP;
	}
	return 0;
}

/* Returns the program's descriptor or -errno. */
static int load_program(struct restart_blocks *blocks)
{
	enum { TASK = 8 }; /* in the iterator's context */
	const int size = sizeof(struct record);
	struct kernel_types *types = kernel_types_read();

	if (!types)
		return -ENOENT;
	int64_t target = kernel_types_find_function(types, "bpf_iter_task");
	int block = kernel_types_member(types, "task_struct", "restart_block");
	int error = find_offsets(blocks, types);
	kernel_types_free(types);
	if (target < 0 || block < 0 || error < 0)
		return -EOPNOTSUPP;
	const struct bpf_insn program[] = {
		bpf_load(BPF_REG_6, BPF_REG_1, TASK),
		bpf_skip_if_zero(BPF_REG_6, 16), /* none: the end */
		bpf_load(BPF_REG_7, BPF_REG_1, BPF_CONTEXT_META),
		bpf_move(BPF_REG_1, BPF_REG_10),
		bpf_add(BPF_REG_1, -BLOCK_BYTES),
		bpf_set(BPF_REG_2, BLOCK_BYTES),
		bpf_move(BPF_REG_3, BPF_REG_6),
		bpf_add(BPF_REG_3, block),
		bpf_call(BPF_FUNC_probe_read_kernel),
		bpf_call(BPF_FUNC_ktime_get_ns),
		bpf_store(BPF_REG_10, -size, BPF_REG_0),
		bpf_call(BPF_FUNC_ktime_get_boot_ns),
		bpf_store(BPF_REG_10, -size + 8, BPF_REG_0),
		BPF_WRITE_AND_END(size),
	};
	return bpf_iterator_load(target, program, ARRAY_SIZE(program), "criu_restart");
}

struct restart_blocks *restart_blocks_open(void)
{
	struct restart_blocks *blocks = xcalloc(1, sizeof(*blocks));

	blocks->program_fd = load_program(blocks);
	if (blocks->program_fd < 0)
		log_debug("interrupted calls wait their whole time again: %s", strerror(-blocks->program_fd));
	return blocks;
}

void restart_blocks_close(struct restart_blocks *blocks)
{
	if (!blocks)
		return;
	close_fd_pointer(&blocks->program_fd);
	free(blocks);
}

bool restart_blocks_knows(uint64_t call)
{
	return call == SYS_poll || call == SYS_futex || call == SYS_nanosleep || call == SYS_clock_nanosleep;
}

static int64_t word_of(const struct restart_blocks *blocks, const struct record *record, enum word word)
{
	int64_t value;

	memcpy(&value, record->block + blocks->offsets[word], sizeof(value));
	return value;
}

static uint32_t half_word_of(const struct restart_blocks *blocks, const struct record *record, enum word word)
{
	return (uint32_t)word_of(blocks, record, word);
}

/* The kernel counts a span of CLOCK_REALTIME in CLOCK_MONOTONIC: setting the time does not change it. */
static bool sleep_remaining(const struct restart_blocks *blocks, const struct record *record, uint64_t asked_clock,
			    int64_t *ret_ns)
{
	uint32_t clock = half_word_of(blocks, record, SLEEP_CLOCK);

	if (clock != (asked_clock == CLOCK_REALTIME ? CLOCK_MONOTONIC : asked_clock) ||
	    (clock != CLOCK_MONOTONIC && clock != CLOCK_BOOTTIME))
		return false;
	int64_t now_ns = clock == CLOCK_MONOTONIC ? record->monotonic_ns : record->boottime_ns;
	return !__builtin_sub_overflow(word_of(blocks, record, SLEEP_END_NS), now_ns, ret_ns);
}

static bool poll_remaining(const struct restart_blocks *blocks, const struct record *record, const uint64_t args[3],
			   int64_t *ret_ns)
{
	int64_t end_ns;

	return word_of(blocks, record, POLL_ARRAY) == (int64_t)args[0] &&
	       half_word_of(blocks, record, POLL_COUNT) == (uint32_t)args[1] &&
	       half_word_of(blocks, record, POLL_HAS_END) &&
	       !__builtin_mul_overflow(word_of(blocks, record, POLL_END_SECONDS), NS_PER_SECOND, &end_ns) &&
	       !__builtin_add_overflow(end_ns, word_of(blocks, record, POLL_END_NS), &end_ns) &&
	       !__builtin_sub_overflow(end_ns, record->monotonic_ns, ret_ns);
}

static bool futex_remaining(const struct restart_blocks *blocks, const struct record *record, const uint64_t args[3],
			    int64_t *ret_ns)
{
	return word_of(blocks, record, FUTEX_ADDRESS) == (int64_t)args[0] &&
	       half_word_of(blocks, record, FUTEX_VALUE) == (uint32_t)args[2] &&
	       !__builtin_sub_overflow(word_of(blocks, record, FUTEX_END_NS), record->monotonic_ns, ret_ns);
}

static bool remaining(const struct restart_blocks *blocks, const struct record *record, uint64_t call,
		      const uint64_t args[3], int64_t *ret_ns)
{
	switch (call) {
	case SYS_poll:
		return poll_remaining(blocks, record, args, ret_ns);
	case SYS_futex:
		return futex_remaining(blocks, record, args, ret_ns);
	case SYS_nanosleep:
		return sleep_remaining(blocks, record, CLOCK_MONOTONIC, ret_ns);
	case SYS_clock_nanosleep:
		return sleep_remaining(blocks, record, args[0], ret_ns);
	default:
		return false;
	}
}

bool restart_blocks_remaining(const struct restart_blocks *blocks, pid_t tid, uint64_t call, const uint64_t args[3],
			      uint64_t *ret_ns)
{
	_cleanup_fd_ int fd = blocks->program_fd < 0 ? -1 : bpf_iterator_open(blocks->program_fd, tid);
	struct record record;
	int64_t left_ns;

	if (fd < 0 || read(fd, &record, sizeof(record)) != sizeof(record) ||
	    !remaining(blocks, &record, call, args, &left_ns))
		return false;
	*ret_ns = left_ns > 0 ? (uint64_t)left_ns : 0;
	return true;
}
