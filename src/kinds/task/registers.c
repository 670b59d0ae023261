/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86-64 registers.
 *
 * The vector state comes as the XSAVE area in its standard layout. Its size and the offsets of its components are
 * the CPU's and are asked with CPUID, never assumed: they differ between vendors. The images have fields for the
 * components that their format knows; when the CPU has others in use, the whole area is kept too.
 */
#include "kinds/task/registers.h"

#include <cpuid.h>
#include <elf.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/fd.h"
#include "kinds/task/restart.h"

#include "core-x86.pb-c.h"
#include "rseq.pb-c.h"

enum {
	XSTATE_MAX_BYTES = 16 * 1024,
	XSTATE_LEGACY_BYTES = 512,
	XSTATE_HEADER_OFFSET = 512, /* xstate_bv, xcomp_bv */
	XSTATE_MIN_BYTES = 576,
	XSTATE_FEATURES_OFFSET = 464, /* the kernel puts XCR0 here */
	TLS_FIRST_ENTRY = 12,
	TLS_ENTRIES = 3,
};

enum xstate_component {
	COMPONENT_YMM = 2,
	COMPONENT_BNDREG,
	COMPONENT_BNDCSR,
	COMPONENT_OPMASK,
	COMPONENT_ZMM_UPPER,
	COMPONENT_HI16_ZMM,
	COMPONENT_PKRU = 9,
	COMPONENT_COUNT_WITH_FIELD
};

#define COMPONENTS_WITH_FIELDS 0x2ffULL /* x87, SSE and those above, without the unused number 8 */

/*
 * Where the components lie in the standard layout on this CPU; bytes 0: the CPU does not have it. Asked once: in a
 * virtual machine each CPUID costs as much as a stop.
 */
struct xstate_layout {
	struct {
		size_t offset, bytes;
	} components[COMPONENT_COUNT_WITH_FIELD];
};

static const struct xstate_layout *read_layout(struct arena *arena)
{
	struct xstate_layout *layout = arena_alloc(arena, sizeof(*layout));
	unsigned eax, ebx, ecx, edx;

	for (unsigned i = COMPONENT_YMM; i < COMPONENT_COUNT_WITH_FIELD; i++)
		if (__get_cpuid_count(0xd, i, &eax, &ebx, &ecx, &edx) && eax) {
			layout->components[i].offset = ebx;
			layout->components[i].bytes = eax;
		}
	return layout;
}

static bool component_place(const struct xstate_layout *layout, unsigned component, size_t *ret_offset)
{
	*ret_offset = layout->components[component].offset;
	return layout->components[component].bytes;
}

/* One repeated field of the xsave entry and the component it holds. */
struct component_field {
	unsigned component;
	size_t count_offset, values_offset; /* in UserX86XsaveEntry */
	size_t value_bytes, values;
};

#define FIELD(number, member, type, count)                                                                          \
	{                                                                                                           \
		number, offsetof(UserX86XsaveEntry, n_##member), offsetof(UserX86XsaveEntry, member), sizeof(type), \
			count                                                                                       \
	}
static const struct component_field component_fields[] = {
	FIELD(COMPONENT_YMM, ymmh_space, uint32_t, 64),
	FIELD(COMPONENT_BNDREG, bndreg_state, uint64_t, 8),
	FIELD(COMPONENT_BNDCSR, bndcsr_state, uint64_t, 8),
	FIELD(COMPONENT_OPMASK, opmask_reg, uint64_t, 8),
	FIELD(COMPONENT_ZMM_UPPER, zmm_upper, uint64_t, 64),
	FIELD(COMPONENT_HI16_ZMM, hi16_zmm, uint64_t, 128),
	FIELD(COMPONENT_PKRU, pkru, uint32_t, 2),
};
#undef FIELD

static int read_xstate(pid_t tid, uint8_t *area, size_t *ret_bytes)
{
	struct iovec vector = {area, XSTATE_MAX_BYTES};

	if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &vector) < 0)
		return -errno;
	if (vector.iov_len < XSTATE_MIN_BYTES)
		return -EPROTO;
	*ret_bytes = vector.iov_len;
	return 0;
}

static UserX86XsaveEntry *dump_components(struct dump *dump, const uint8_t *area, size_t bytes, uint64_t features)
{
	if (!dump->xstate_layout)
		dump->xstate_layout = read_layout(&dump->arena);
	UserX86XsaveEntry *entry = arena_message(&dump->arena, UserX86XsaveEntry, user_x86_xsave_entry);

	memcpy(&entry->xstate_bv, area + XSTATE_HEADER_OFFSET, sizeof(entry->xstate_bv));
	for (size_t i = 0; i < ARRAY_SIZE(component_fields); i++) {
		const struct component_field *field = &component_fields[i];
		size_t offset, want = field->value_bytes * field->values;
		if (!(features >> field->component & 1) ||
		    !component_place(dump->xstate_layout, field->component, &offset) || offset + want > bytes)
			continue;
		*(size_t *)((char *)entry + field->count_offset) = field->values;
		*(void **)((char *)entry + field->values_offset) = arena_memdup(&dump->arena, area + offset, want);
	}
	entry->cet = arena_message(&dump->arena, UserX86CetEntry, user_x86_cet_entry);
	return entry;
}

static UserX86FpregsEntry *dump_vector_state(struct dump *dump, const uint8_t *area, size_t bytes)
{
	UserX86FpregsEntry *entry = arena_message(&dump->arena, UserX86FpregsEntry, user_x86_fpregs_entry);
	const struct user_fpregs_struct *legacy = (const void *)area;
	uint64_t features, in_use;

	entry->cwd = legacy->cwd;
	entry->swd = legacy->swd;
	entry->twd = legacy->ftw;
	entry->fop = legacy->fop;
	entry->rip = legacy->rip;
	entry->rdp = legacy->rdp;
	entry->mxcsr = legacy->mxcsr;
	entry->mxcsr_mask = legacy->mxcr_mask;
	entry->n_st_space = ARRAY_SIZE(legacy->st_space);
	entry->st_space = arena_memdup(&dump->arena, legacy->st_space, sizeof(legacy->st_space));
	entry->n_xmm_space = ARRAY_SIZE(legacy->xmm_space);
	entry->xmm_space = arena_memdup(&dump->arena, legacy->xmm_space, sizeof(legacy->xmm_space));
	memcpy(&features, area + XSTATE_FEATURES_OFFSET, sizeof(features));
	memcpy(&in_use, area + XSTATE_HEADER_OFFSET, sizeof(in_use));
	entry->xsave = dump_components(dump, area, bytes, features);
	if (in_use & ~COMPONENTS_WITH_FIELDS) {
		entry->has_xstate = true;
		entry->xstate.len = bytes;
		entry->xstate.data = arena_memdup(&dump->arena, area, bytes);
	}
	return entry;
}

/* The three segments of set_thread_area; 64-bit programs hardly ever have one. */
static void dump_tls(struct dump *dump, ThreadInfoX86 *info)
{
	UserDescT *descriptors = arena_alloc(&dump->arena, TLS_ENTRIES * sizeof(*descriptors));

	info->n_tls = TLS_ENTRIES;
	info->tls = arena_alloc(&dump->arena, TLS_ENTRIES * sizeof(*info->tls));
	for (unsigned i = 0; i < TLS_ENTRIES; i++) {
		user_desc_t__init(&descriptors[i]);
		descriptors[i].entry_number = TLS_FIRST_ENTRY + i;
		descriptors[i].read_exec_only = descriptors[i].seg_not_present = true;
		info->tls[i] = &descriptors[i];
	}
}

/* Fields that the image and struct user_regs_struct both have. */
#define FOR_EACH_REGISTER(apply)                                                                                  \
	apply(r15) apply(r14) apply(r13) apply(r12) apply(r11) apply(r10) apply(r9) apply(r8) apply(cs) apply(ss) \
		apply(ds) apply(es) apply(fs) apply(gs) apply(fs_base) apply(gs_base)
#define FOR_EACH_RENAMED_REGISTER(apply)                                                                         \
	apply(bp, rbp) apply(bx, rbx) apply(ax, rax) apply(cx, rcx) apply(dx, rdx) apply(si, rsi) apply(di, rdi) \
		apply(orig_ax, orig_rax) apply(ip, rip) apply(flags, eflags) apply(sp, rsp)

static UserX86RegsEntry *dump_registers(struct dump *dump, const struct user_regs_struct *regs)
{
	UserX86RegsEntry *entry = arena_message(&dump->arena, UserX86RegsEntry, user_x86_regs_entry);

#define COPY(name) entry->name = regs->name;
#define COPY_RENAMED(image, kernel) entry->image = regs->kernel;
	FOR_EACH_REGISTER(COPY)
	FOR_EACH_RENAMED_REGISTER(COPY_RENAMED)
#undef COPY
#undef COPY_RENAMED
	entry->has_mode = true;
	entry->mode = USER_X86_REGS_MODE__NATIVE;
	return entry;
}

void registers_context(const CoreEntry *core, struct thread_context *ret_context)
{
	const UserX86RegsEntry *entry = core->thread_info->gpregs;
	struct user_regs_struct *regs = &ret_context->regs;

	*ret_context = (struct thread_context){};
#define COPY(name) regs->name = entry->name;
#define COPY_RENAMED(image, kernel) regs->kernel = entry->image;
	FOR_EACH_REGISTER(COPY)
	FOR_EACH_RENAMED_REGISTER(COPY_RENAMED)
#undef COPY
#undef COPY_RENAMED
	/* The leader's mask is in tc, a thread's in thread_core. */
	if (core->tc)
		ret_context->blocked = core->tc->blk_sigset;
	else if (core->thread_core && core->thread_core->has_blk_sigset)
		ret_context->blocked = core->thread_core->blk_sigset;
}

struct rseq_configuration {
	uint64_t pointer;
	uint32_t size, signature, flags, padding;
};

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif

static int dump_rseq(struct dump *dump, struct dump_thread *thread)
{
	struct rseq_configuration rseq = {};
	enum { RSEQ_CS_OFFSET = 8 };

	/* A kernel without it has no registered area to lose, or is too old to ask. */
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, thread->tid, sizeof(rseq), &rseq) < 0 || !rseq.pointer)
		return 0;
	RseqEntry *entry = arena_message(&dump->arena, RseqEntry, rseq_entry);
	entry->rseq_abi_pointer = rseq.pointer;
	entry->rseq_abi_size = rseq.size;
	entry->signature = rseq.signature;
	uint64_t critical_section = 0;
	struct iovec local = {&critical_section, sizeof(critical_section)};
	struct iovec remote = {(void *)(rseq.pointer + RSEQ_CS_OFFSET), sizeof(critical_section)};
	if (process_vm_readv(thread->task->pid, &local, 1, &remote, 1, 0) == sizeof(critical_section) &&
	    critical_section) {
		entry->has_rseq_cs_pointer = true;
		entry->rseq_cs_pointer = critical_section;
	}
	thread->core->thread_core->rseq_entry = entry;
	return 0;
}

int registers_dump(struct dump *dump, struct dump_thread *thread, const struct thread_context *context)
{
	struct thread_context as_dumped = *context;
	uint8_t area[XSTATE_MAX_BYTES] __attribute__((aligned(64)));
	size_t bytes;

	if (context_is_compat(context))
		return fail(&dump->failure, EOPNOTSUPP, "task-compat", dump_task_name(dump, thread->task), NULL,
			    "thread %d runs 32-bit code, which cannot be checkpointed", thread->tid);
	int error = read_xstate(thread->tid, area, &bytes);
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-xstate", dump_task_name(dump, thread->task), NULL,
				  "cannot read the vector registers of thread %d", thread->tid);
	ThreadInfoX86 *info = arena_message(&dump->arena, ThreadInfoX86, thread_info_x86);
	/* clear_tid_addr is what its own kind asks inside the thread. */
	if (thread->core->thread_info)
		info->clear_tid_addr = thread->core->thread_info->clear_tid_addr;
	restart_dump(dump, thread, &as_dumped);
	info->gpregs = dump_registers(dump, &as_dumped.regs);
	info->fpregs = dump_vector_state(dump, area, bytes);
	dump_tls(dump, info);
	thread->core->thread_info = info;
	return dump_rseq(dump, thread);
}

static int check_fields(struct restore *restore, const UserX86XsaveEntry *xsave)
{
	if (!restore->xstate_layout)
		restore->xstate_layout = read_layout(&restore->arena);
	for (size_t i = 0; i < ARRAY_SIZE(component_fields); i++) {
		const struct component_field *field = &component_fields[i];
		size_t count = *(const size_t *)((const char *)xsave + field->count_offset), offset;
		if (count && count != field->values)
			return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
				    "vector registers: component %u has %zu values", field->component, count);
		if (count && (xsave->xstate_bv >> field->component & 1) &&
		    !component_place(restore->xstate_layout, field->component, &offset))
			return fail(&restore->failure, EOPNOTSUPP, "cpu-feature", NULL,
				    "restore it on a CPU like the one it was dumped on",
				    "it uses vector registers (XSAVE component %u) that this CPU does not have",
				    field->component);
	}
	return 0;
}

int registers_check(struct restore *restore, const CoreEntry *core)
{
	const ThreadInfoX86 *info = core->thread_info;

	if (core->mtype != CORE_ENTRY__MARCH__X86_64)
		return fail(&restore->failure, EOPNOTSUPP, "image-architecture", NULL,
			    "restore it on a machine of its own architecture",
			    "it was dumped on another architecture (%d)", core->mtype);
	if (!info || !info->gpregs || !info->fpregs)
		return fail(&restore->failure, EINVAL, "image-missing", NULL, NULL, "it has no registers");
	if (info->gpregs->has_mode && info->gpregs->mode != USER_X86_REGS_MODE__NATIVE)
		return fail(&restore->failure, EOPNOTSUPP, "task-compat", NULL, NULL, "it is a 32-bit task");
	const UserX86FpregsEntry *fpregs = info->fpregs;
	struct user_fpregs_struct legacy;
	if (fpregs->n_st_space != ARRAY_SIZE(legacy.st_space) || fpregs->n_xmm_space != ARRAY_SIZE(legacy.xmm_space))
		return fail(&restore->failure, EINVAL, "image-range", NULL, NULL, "vector registers are incomplete");
	return fpregs->xsave ? check_fields(restore, fpregs->xsave) : 0;
}

static void fill_area(const struct xstate_layout *layout, const UserX86FpregsEntry *entry, uint8_t *area, size_t bytes)
{
	struct user_fpregs_struct *legacy = (void *)area;
	uint64_t in_use = 3;

	legacy->cwd = entry->cwd;
	legacy->swd = entry->swd;
	legacy->ftw = entry->twd;
	legacy->fop = entry->fop;
	legacy->rip = entry->rip;
	legacy->rdp = entry->rdp;
	legacy->mxcsr = entry->mxcsr & legacy->mxcr_mask;
	memcpy(legacy->st_space, entry->st_space, sizeof(legacy->st_space));
	memcpy(legacy->xmm_space, entry->xmm_space, sizeof(legacy->xmm_space));
	if (entry->xsave) {
		uint64_t restorable = 3;
		for (size_t i = 0; i < ARRAY_SIZE(component_fields); i++) {
			const struct component_field *field = &component_fields[i];
			const char *base = (const char *)entry->xsave;
			size_t offset, want = field->value_bytes * field->values;
			if (!*(const size_t *)(base + field->count_offset) ||
			    !component_place(layout, field->component, &offset) || offset + want > bytes)
				continue;
			memcpy(area + offset, *(void *const *)(base + field->values_offset), want);
			restorable |= 1ULL << field->component;
		}
		in_use = entry->xsave->xstate_bv & restorable;
	}
	memcpy(area + XSTATE_HEADER_OFFSET, &in_use, sizeof(in_use));
}

/* Going through the interpreter has made the kernel clear it; the thread may stand in the middle of the section. */
static int restore_critical_section(struct restore *restore, const CoreEntry *core, pid_t pid)
{
	const RseqEntry *rseq = core->thread_core ? core->thread_core->rseq_entry : NULL;
	enum { RSEQ_CS_OFFSET = 8 };

	if (!rseq || !rseq->has_rseq_cs_pointer || !rseq->rseq_cs_pointer)
		return 0;
	uint64_t pointer = rseq->rseq_cs_pointer;
	struct iovec local = {&pointer, sizeof(pointer)};
	struct iovec remote = {(void *)(rseq->rseq_abi_pointer + RSEQ_CS_OFFSET), sizeof(pointer)};
	if (process_vm_writev(pid, &local, 1, &remote, 1, 0) != sizeof(pointer))
		return fail_errno(&restore->failure, errno, "restore-rseq", NULL, NULL,
				  "cannot restore the rseq critical section");
	return 0;
}

/*
 * The area as this kernel lays it out gives size, header and masks. They are the same for all threads, and what a
 * component holds is of no account until the header says that it is in use.
 */
static int read_empty_area(struct restore *restore, pid_t tid)
{
	if (restore->xstate_area)
		return 0;
	uint8_t *area = arena_alloc(&restore->arena, XSTATE_MAX_BYTES);
	int error = read_xstate(tid, area, &restore->xstate_bytes);
	if (!error)
		restore->xstate_area = area;
	return error;
}

int registers_restore(struct restore *restore, const CoreEntry *core, pid_t pid, pid_t tid,
		      const int64_t *interrupted_result)
{
	uint8_t area[XSTATE_MAX_BYTES] __attribute__((aligned(64)));
	const UserX86FpregsEntry *entry = core->thread_info->fpregs;
	struct thread_context context;
	size_t bytes;

	int error = read_empty_area(restore, tid);
	if (error < 0)
		return fail_errno(&restore->failure, error, "restore-xstate", NULL, NULL,
				  "cannot read the vector registers of thread %d", tid);
	bytes = restore->xstate_bytes;
	memcpy(area, restore->xstate_area, bytes);
	if (entry->has_xstate && entry->xstate.len == bytes)
		memcpy(area, entry->xstate.data, bytes);
	else
		fill_area(restore->xstate_layout, entry, area, bytes);
	struct iovec vector = {area, bytes};
	if (ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &vector) < 0)
		return fail_errno(&restore->failure, errno, "restore-xstate", NULL, NULL,
				  "cannot set the vector registers of thread %d", tid);
	registers_context(core, &context);
	restart_context(core, interrupted_result, &context);
	error = restore_critical_section(restore, core, pid);
	if (error < 0)
		return error;
	error = context_restore(tid, &context);
	if (error < 0)
		return fail_errno(&restore->failure, error, "restore-registers", NULL, NULL,
				  "cannot set the registers of thread %d", tid);
	return 0;
}
