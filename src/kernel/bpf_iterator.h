/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BPF iterators over tasks (bpf_iter, Linux 6.1): small programs that write what they read of the kernel's structures
 * into a file. They are assembled from the pieces here, with offsets from kernel_types.h, so that neither a BPF
 * compiler nor a kernel's headers are needed to build criu. The programs ask the kernel for GPL helpers, hence their
 * licence string; they are ours under either of both licences.
 */
#pragma once

#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Loads a program. @target: id of the iterator's function (kernel_types_find_function()). Returns its descriptor, owned
 * by the caller, or -errno.
 */
int bpf_iterator_load(int64_t target, const struct bpf_insn *program, size_t count, const char *name);
/* What a program reads of each object. */
struct bpf_reading {
	size_t into; /* offset in the record, a multiple of 8 */
	int from;    /* offset in the record of the address, read before; or one of the next */
	int offset;  /* from there; negative = the kernel has no such thing, the loading fails */
	int bytes;   /* 4 or 8 */
};

enum {
	BPF_FROM_OBJECT = -1,  /* what the iterator is about */
	BPF_FROM_CONTEXT = -2, /* the words that the iterator gives the program; 8 bytes */
};

/*
 * Loads a program that writes one record for each object, all of it readings.
 * @object        offset of the object's address in the iterator's context
 * @readings      in the order in which they are done; what cannot be read is 0
 * @record_bytes  a multiple of 8
 * Returns its descriptor, owned by the caller, or -errno.
 */
int bpf_iterator_load_readings(int64_t target, int object, const struct bpf_reading *readings, size_t count,
			       size_t record_bytes, const char *name);
/*
 * A file that runs the program over one thread.
 * @tid  in our pid namespace
 * Returns a descriptor, owned by the caller, or -errno.
 */
int bpf_iterator_open(int program_fd, pid_t tid);
/* The same over all threads of process @pid. */
int bpf_iterator_open_process(int program_fd, pid_t pid);
/* Reads @room records at most. Returns their number; what ends the reading early is not told. */
size_t bpf_iterator_read(int fd, void *records, size_t record_bytes, size_t room);

static inline struct bpf_insn bpf_load(int to, int from, int offset)
{
	return (struct bpf_insn){.code = BPF_LDX | BPF_MEM | BPF_DW,
				 .dst_reg = (unsigned)to & 15,
				 .src_reg = (unsigned)from & 15,
				 .off = (short)offset};
}

static inline struct bpf_insn bpf_store(int to, int offset, int from)
{
	return (struct bpf_insn){.code = BPF_STX | BPF_MEM | BPF_DW,
				 .dst_reg = (unsigned)to & 15,
				 .src_reg = (unsigned)from & 15,
				 .off = (short)offset};
}

static inline struct bpf_insn bpf_move(int to, int from)
{
	return (struct bpf_insn){
		.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = (unsigned)to & 15, .src_reg = (unsigned)from & 15};
}

static inline struct bpf_insn bpf_set(int to, int value)
{
	return (struct bpf_insn){.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = (unsigned)to & 15, .imm = value};
}

static inline struct bpf_insn bpf_add(int to, int value)
{
	return (struct bpf_insn){.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = (unsigned)to & 15, .imm = value};
}

/* Helper @function (BPF_FUNC_…): arguments in registers 1 to 5, result in 0. */
static inline struct bpf_insn bpf_call(int function)
{
	return (struct bpf_insn){.code = BPF_JMP | BPF_CALL, .imm = function};
}

/* Jumps over @count instructions if @value is 0. */
static inline struct bpf_insn bpf_skip_if_zero(int value, int count)
{
	return (struct bpf_insn){
		.code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = (unsigned)value & 15, .off = (short)count};
}

static inline struct bpf_insn bpf_exit(void)
{
	return (struct bpf_insn){.code = BPF_JMP | BPF_EXIT};
}

/* Of an iterator's context: eight bytes a pointer. The first is to the meta information, whose first is to the file. */
enum { BPF_CONTEXT_META = 0, BPF_META_FILE = 0 };

/* Writes @size bytes at the end of the stack into the file; register 7 has the meta information. The program ends. */
#define BPF_WRITE_AND_END(size)                                                                                      \
	bpf_load(BPF_REG_1, BPF_REG_7, BPF_META_FILE), bpf_move(BPF_REG_2, BPF_REG_10), bpf_add(BPF_REG_2, -(size)), \
		bpf_set(BPF_REG_3, (size)), bpf_call(BPF_FUNC_seq_write), bpf_set(BPF_REG_0, 0), bpf_exit()
