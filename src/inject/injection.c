/* SPDX-License-Identifier: Apache-2.0 */
#include "inject/injection.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "base/fd.h"
#include "inject/ptrace.h"
#include "interpreter_code.h"

enum {
	PAGE_BYTES = 4096,
	SLOT_STACK_BYTES = 1024,
	FIRST_PAUSE_NS =
		20 * 1000, /* what is not ready when it is asked is asked again after this, then after twice … */
	LONGEST_PAUSE_NS = 2 * 1000 * 1000,
	NOTHING_TO_UNMAP = -1,
};

static const uint64_t LARGEST_REMNANT = 1ULL << 32;

/* One thread's part of the data: [blob_run][stack][data, steps]. */
struct injection_slot {
	pid_t tid;
	struct thread_context context;
	uint64_t address;
	size_t bytes;
	bool blocked;            /* it has our mask and some registers of ours, not its own context */
	struct program *running; /* started and not yet waited for */
	bool on_its_way;         /* it may be running code of ours */
	bool interrupted;        /* and will stop, or has stopped */
	struct blob_notice notice;
};

struct injection {
	pid_t pid;
	int memory_fd;      /* /proc/PID/mem */
	uint64_t park_code; /* in the vDSO's tail */
	size_t unmap_call;  /* its offset in the park code */
	uint8_t park_code_original[PARK_CODE_BYTES];
	bool park_code_written;
	uint64_t patience_ns;
	uint64_t code, data; /* 0 = not mapped; data follows code */
	size_t code_bytes, data_bytes;
	struct injection_slot *slots;
	size_t slot_count;
	bool closing; /* the leader was sent to remove the mapping */
	bool lost;    /* a thread went its own way: nothing inside can be relied on */
};

static int fail_at(struct failure *failure, const struct injection *injection, int error, const char *what)
{
	if (error == -ETIME)
		fail(failure, ETIME, "inject-late", NULL, "try again when the machine is less busy",
		     "criu was held up for so long that a thread did not wait for it");
	else
		fail_errno(failure, error, "inject", NULL, NULL, "%s", what);
	return fail_in(failure, "process %d", injection->pid);
}

static int write_memory(struct injection *injection, uint64_t address, const void *data, size_t size)
{
	return pwrite_full(injection->memory_fd, data, size, address);
}

/* ---- threads on their way ---- */

/* Registers of ours are set, and from here on it has our mask. */
static int send_off(struct injection_slot *slot)
{
	int error = slot->blocked ? 0 : context_block_signals(slot->tid);

	if (error)
		return error;
	slot->blocked = true;
	if (ptrace(PTRACE_CONT, slot->tid, 0, 0) < 0)
		return -errno;
	slot->on_its_way = true;
	slot->interrupted = false;
	return 0;
}

/* Gives it its own context back, if it has not got it. */
static int restore_context(struct injection_slot *slot)
{
	slot->blocked = false;
	return context_restore(slot->tid, &slot->context);
}

static int interrupt(struct injection_slot *slot)
{
	if (slot->interrupted)
		return 0;
	if (ptrace(PTRACE_INTERRUPT, slot->tid, 0, 0) < 0)
		return -errno;
	slot->interrupted = true;
	return 0;
}

void injection_interrupt(struct injection *injection, size_t index)
{
	/* A thread that is gone is told by the wait for it. */
	if (injection->slots[index].on_its_way)
		interrupt(&injection->slots[index]);
}

static int wait_stopped(struct injection_slot *slot)
{
	int signal, error = interrupt(slot);

	if (error)
		return error;
	int stop = thread_wait_interrupted(slot->tid, &signal);
	return stop < 0 ? stop : stop == THREAD_STOP_GONE ? -ESRCH : 0;
}

/*
 * It was stopped before its end: it goes on and gets a little more time. An interruption is not asked for again if it
 * stands already (an old one took effect): that would stop it once more, before it has done anything.
 */
static int send_on(struct injection_slot *slot, long *pause_ns)
{
	const struct timespec pause = {.tv_nsec = *pause_ns};
	siginfo_t info = {};
	int error = send_off(slot);

	if (error)
		return error;
	nanosleep(&pause, NULL);
	*pause_ns = *pause_ns * 2 < LONGEST_PAUSE_NS ? *pause_ns * 2 : LONGEST_PAUSE_NS;
	slot->interrupted = !waitid(P_PID, slot->tid, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL) && info.si_pid;
	return 0;
}

/*
 * The thread did not wait. Where it stands in code of ours it is on its way back and gets its context from us; else
 * its registers are its own again, and newer than what we know.
 */
static int was_late(struct injection *injection, struct injection_slot *slot)
{
	uint64_t at, code_end = injection->code + injection->code_bytes;

	injection->lost = true;
	if (!context_instruction(slot->tid, &at) &&
	    ((at >= injection->park_code && at < injection->park_code + PARK_CODE_BYTES) ||
	     (at >= injection->code && at < code_end)))
		restore_context(slot);
	return -ETIME;
}

/* ---- single system calls ---- */

static int begin_call(struct injection *injection, long number, const int64_t args[6], uint64_t unmap)
{
	struct injection_slot *leader = &injection->slots[0];
	int error = context_call_parked(leader->tid, &leader->context, injection->park_code, number, args, unmap,
					injection->code_bytes + injection->data_bytes);

	return error ? error : send_off(leader);
}

/* The leader stays parked: what it would unmap is unmapped if the tool dies now. */
static int finish_call(struct injection *injection, int64_t *ret_result)
{
	struct injection_slot *leader = &injection->slots[0];
	long pause_ns = FIRST_PAUSE_NS;

	for (;;) {
		int error = wait_stopped(leader);
		if (error)
			return error;
		int made = context_parked_result(leader->tid, injection->park_code, ret_result);
		if (made)
			leader->on_its_way = false;
		if (made == -ETIME)
			return was_late(injection, leader);
		if (made)
			return made < 0 ? made : 0;
		error = send_on(leader, &pause_ns);
		if (error)
			return error;
	}
}

static int call_parked(struct injection *injection, long number, const int64_t args[6], uint64_t unmap,
		       int64_t *ret_result)
{
	int error = begin_call(injection, number, args, unmap);

	return error ? error : finish_call(injection, ret_result);
}

int injection_remote_call(struct failure *failure, struct injection *injection, long number, const int64_t args[6],
			  int64_t *ret_result)
{
	struct injection_slot *leader = &injection->slots[0];
	uint64_t unmap = injection->code ? injection->code : (uint64_t)NOTHING_TO_UNMAP;
	int error = call_parked(injection, number, args, unmap, ret_result);

	if (error != -ETIME) {
		int restored = restore_context(leader);
		error = error ? error : restored;
	}
	return error ? fail_at(failure, injection, error, "cannot run a system call inside it") : 0;
}

/*
 * The end of the vDSO's last page holds nothing that runs: padding, or before it the table of sections, which is the
 * last part of the file, for debuggers.
 */
static int write_park_code(struct failure *failure, struct injection *injection, const struct injection_target *target)
{
	uint8_t code[PARK_CODE_BYTES];

	if (target->vdso_end < target->vdso_start + PAGE_BYTES)
		return fail(failure, EOPNOTSUPP, "inject-no-vdso", NULL, "boot without vdso=0",
			    "process %d has no vDSO", target->pid);
	injection->park_code = target->vdso_end - PARK_CODE_BYTES;
	int error =
		pread_full(injection->memory_fd, injection->park_code_original, PARK_CODE_BYTES, injection->park_code);
	if (error)
		return fail_at(failure, injection, error, "cannot read its vDSO");
	injection->unmap_call =
		context_park_code(&injection->slots[0].context, injection->park_code, injection->patience_ns, code);
	error = write_memory(injection, injection->park_code, code, sizeof(code));
	if (error)
		return fail_at(failure, injection, error, "cannot write into its vDSO");
	injection->park_code_written = true;
	return 0;
}

/* ---- the mapping ---- */

/* The limits that a new private mapping counts for. */
static const int memory_limits[] = {RLIMIT_AS, RLIMIT_DATA};

/* A process that uses all it may get gets our pages beside that: its soft limits are up for the time of one call. */
static int call_above_limits(struct injection *injection, long number, const int64_t args[6], uint64_t unmap,
			     int64_t *ret_result)
{
	struct rlimit before[ARRAY_SIZE(memory_limits)];
	bool raised[ARRAY_SIZE(memory_limits)];

	for (size_t i = 0; i < ARRAY_SIZE(memory_limits); i++) {
		struct rlimit limit;
		raised[i] = !prlimit(injection->pid, memory_limits[i], NULL, &before[i]);
		limit.rlim_cur = limit.rlim_max = before[i].rlim_max;
		raised[i] = raised[i] && !prlimit(injection->pid, memory_limits[i], &limit, NULL);
	}
	int error = call_parked(injection, number, args, unmap, ret_result);
	for (size_t i = 0; i < ARRAY_SIZE(memory_limits); i++)
		if (raised[i])
			prlimit(injection->pid, memory_limits[i], &before[i], NULL);
	return error;
}

static int begin_map(struct injection *injection, int protection)
{
	const int64_t args[6] = {
		0, injection->code_bytes + injection->data_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0};

	return begin_call(injection, SYS_mmap, args, 0);
}

/* Takes what begin_map() has got, with higher limits if need be. Leaves the leader parked. */
static int finish_map(struct injection *injection, int protection)
{
	const int64_t args[6] = {
		0, injection->code_bytes + injection->data_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0};
	int64_t result = 0;
	int error = finish_call(injection, &result);

	if (!error && result == -ENOMEM)
		error = call_above_limits(injection, SYS_mmap, args, 0, &result);
	if (error)
		return error;
	if (result < 0 && result > -PAGE_BYTES)
		return result;
	injection->code = result;
	injection->data = injection->code + injection->code_bytes;
	return 0;
}

/*
 * Where a process may not have memory that is writable and executable (PR_SET_MDWE, SELinux), the mapping is made
 * executable, and the data part changed to writable. Still one range, which is found and removed as one.
 */
static int map_without_both(struct injection *injection)
{
	int64_t result = 0;
	int error = begin_map(injection, PROT_READ | PROT_EXEC);

	if (!error)
		error = finish_map(injection, PROT_READ | PROT_EXEC);
	if (error)
		return error;
	const int64_t args[6] = {injection->data, injection->data_bytes, PROT_READ | PROT_WRITE};
	error = call_parked(injection, SYS_mprotect, args, injection->code, &result);
	if (!error && result == -ENOMEM)
		error = call_above_limits(injection, SYS_mprotect, args, injection->code, &result);
	return error ? error : result;
}

/* Behind the interpreter stands the size of the whole mapping, for whoever finds it. */
static const size_t first_leave_code =
	(sizeof(interpreter_code) + sizeof(uint64_t) + LEAVE_CODE_BYTES - 1) / LEAVE_CODE_BYTES * LEAVE_CODE_BYTES;

static void lay_out(struct injection *injection, const struct injection_target *target)
{
	size_t code = first_leave_code, data = 0, fixed = sizeof(struct blob_run) + SLOT_STACK_BYTES;

	for (size_t i = 0; i < injection->slot_count; i++) {
		struct injection_slot *slot = &injection->slots[i];
		slot->address = data; /* relative until the mapping has its place */
		slot->bytes = ((i ? target->thread_bytes : target->leader_bytes) + fixed + 63) / 64 * 64;
		data += slot->bytes;
		code += LEAVE_CODE_BYTES;
	}
	injection->code_bytes = (code + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	injection->data_bytes = (data + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static uint64_t leave_code_address(const struct injection *injection, size_t index)
{
	return injection->code + first_leave_code + index * LEAVE_CODE_BYTES;
}

static int write_code(struct injection *injection)
{
	_cleanup_free_ uint8_t *code = xcalloc(1, injection->code_bytes);
	const uint64_t bytes = injection->code_bytes + injection->data_bytes;

	memcpy(code, interpreter_code, sizeof(interpreter_code));
	memcpy(code + sizeof(interpreter_code), &bytes, sizeof(bytes));
	for (size_t i = 0; i < injection->slot_count; i++) {
		uint64_t address = leave_code_address(injection, i);
		context_leave_code(&injection->slots[i].context, address, code + (address - injection->code));
	}
	return write_memory(injection, injection->code, code, injection->code_bytes);
}

bool injection_is_inside(struct failure *failure, const struct injection *injection, uint64_t start, uint64_t bytes)
{
	for (size_t i = 0; i < injection->slot_count; i++) {
		const struct injection_slot *slot = &injection->slots[i];
		if (slot->context.regs.rip < start || slot->context.regs.rip >= start + bytes)
			continue;
		fail(failure, EAGAIN, "inject-late", NULL, "try again",
		     "thread %d is on its way back from a criu that was killed", slot->tid);
		fail_in(failure, "process %d", injection->pid);
		return true;
	}
	return false;
}

static int save_contexts(struct failure *failure, struct injection *injection, const struct injection_target *target)
{
	injection->slots = xcalloc(target->thread_count, sizeof(*injection->slots));
	injection->slot_count = target->thread_count;
	for (size_t i = 0; i < target->thread_count; i++) {
		injection->slots[i].tid = target->tids[i];
		int error = context_save(target->tids[i], &injection->slots[i].context);
		if (error)
			return fail_at(failure, injection, error, "cannot read the registers of a thread");
	}
	bool inside = injection_is_inside(failure, injection, target->vdso_end - PARK_CODE_BYTES, PARK_CODE_BYTES);
	return inside ? -failure->error : 0;
}

int injection_new(struct failure *failure, const struct injection_target *target, struct injection **ret_injection)
{
	struct injection *injection = xcalloc(1, sizeof(*injection));

	injection->pid = target->pid;
	injection->patience_ns = target->patience_ns;
	injection->memory_fd = openat(target->proc_dirfd, "mem", O_RDWR | O_CLOEXEC);
	int error = injection->memory_fd < 0 ? fail_at(failure, injection, -errno, "cannot open its memory") : 0;
	if (!error)
		error = save_contexts(failure, injection, target);
	if (!error) {
		lay_out(injection, target);
		error = write_park_code(failure, injection, target);
	}
	if (error) {
		struct failure ignored = {};
		injection_close(&ignored, injection);
		return error;
	}
	*ret_injection = injection;
	return 0;
}

int injection_begin_open(struct failure *failure, struct injection *injection)
{
	int error = begin_map(injection, PROT_READ | PROT_WRITE | PROT_EXEC);

	return error ? fail_at(failure, injection, error, "cannot run a system call inside it") : 0;
}

/*
 * The leader leaves its parking place only when the mapping begins with what makes it known. It stays parked until its
 * program starts: if the tool dies now, it finds back by itself.
 */
int injection_open(struct failure *failure, struct injection *injection)
{
	struct injection_slot *leader = &injection->slots[0];
	int error = finish_map(injection, PROT_READ | PROT_WRITE | PROT_EXEC);

	if (error && error != -ETIME && !leader->on_its_way)
		error = map_without_both(injection);
	if (!error)
		error = write_code(injection);
	if (error && !injection->code && !injection->lost && !leader->on_its_way)
		restore_context(leader);
	if (error)
		return fail_at(failure, injection, error, "cannot map memory inside it");
	for (size_t i = 0; i < injection->slot_count; i++)
		injection->slots[i].address += injection->data;
	return 0;
}

const struct thread_context *injection_context(const struct injection *injection, size_t index)
{
	return &injection->slots[index].context;
}

static uint64_t slot_data_address(const struct injection_slot *slot)
{
	return slot->address + sizeof(struct blob_run) + SLOT_STACK_BYTES;
}

static size_t slot_data_bytes(const struct injection_slot *slot)
{
	return slot->bytes - sizeof(struct blob_run) - SLOT_STACK_BYTES;
}

struct program *injection_program(struct injection *injection, size_t index)
{
	struct injection_slot *slot = &injection->slots[index];

	return program_new((remote_t){slot_data_address(slot)}, slot_data_bytes(slot));
}

/* The run, the data and the steps behind the data: written and read back in one call each. */
static int transfer(const struct injection *injection, struct injection_slot *slot, struct program *program,
		    struct blob_run *run, bool to_task)
{
	size_t data = program_data_size(program), steps = program_step_count(program) * sizeof(struct blob_step);
	uint64_t data_address = slot_data_address(slot);
	struct iovec local[] = {
		{run, sizeof(*run)}, {program_data_buffer(program), data}, {program_steps(program), steps}};
	struct iovec remote[] = {{(void *)slot->address, sizeof(*run)},
				 {(void *)data_address, data},
				 {(void *)(data_address + data), steps}};
	ssize_t want = sizeof(*run) + data + steps;
	ssize_t count = to_task ? process_vm_writev(injection->pid, local, 3, remote, 3, 0)
				: process_vm_readv(injection->pid, local, 3, remote, 3, 0);

	return count == want ? 0 : count < 0 ? -errno : -EFAULT;
}

int injection_start(struct failure *failure, struct injection *injection, size_t index, struct program *program)
{
	const uint64_t second_ns = 1000000000;
	struct injection_slot *slot = &injection->slots[index];
	size_t data = program_data_size(program), steps = program_step_count(program) * sizeof(struct blob_step);
	struct blob_run run = {
		.steps = slot_data_address(slot) + data,
		.count = program_step_count(program),
		.id = index,
		.leave = leave_code_address(injection, index),
		.patience = {injection->patience_ns / second_ns, injection->patience_ns % second_ns},
	};

	/* A single thread can take everything of ours with it, from the vDSO's tail, when the tool dies. */
	if (injection->slot_count == 1) {
		run.leave = injection->park_code + injection->unmap_call;
		run.unmap = injection->code;
		run.unmap_bytes = injection->code_bytes + injection->data_bytes;
	}

	if (program_overflow(program) || data + steps > slot_data_bytes(slot))
		return fail_at(failure, injection, -E2BIG, "a program for it is larger than planned");
	int error = transfer(injection, slot, program, &run, true);
	if (!error)
		error = context_redirect(slot->tid, &slot->context, injection->code, slot->address,
					 slot->address + sizeof(run) + SLOT_STACK_BYTES);
	if (!error)
		error = send_off(slot);
	if (error) {
		restore_context(slot);
		return fail_at(failure, injection, error, "cannot start a program in a thread");
	}
	slot->running = program;
	return 0;
}

/*
 * Waits for the end of the program and takes its results. A thread gets its own context back; the leader, whose next
 * call removes the mapping, stands where it waits for the tool until that is done.
 */
static int finish_program(struct injection *injection, struct injection_slot *slot)
{
	long pause_ns = FIRST_PAUSE_NS;
	struct blob_run run;

	for (;;) {
		int error = wait_stopped(slot);
		if (error)
			return error;
		error = transfer(injection, slot, slot->running, &run, false);
		/* A thread that has left may have unmapped its program. */
		if (error || run.state == BLOB_RUN_LEFT)
			return was_late(injection, slot);
		if (run.state == BLOB_RUN_ENDED)
			break;
		error = send_on(slot, &pause_ns);
		if (error)
			return error;
	}
	slot->notice = run.notice;
	return slot == &injection->slots[0] ? 0 : restore_context(slot);
}

static int check_notice(struct failure *failure, const struct injection_slot *slot, const struct program *program)
{
	if (slot->notice.failed_step < 0)
		return 0;
	const char *what = program_step_description(program, slot->notice.failed_step);
	fail_errno(failure, slot->notice.result, "inject-call", NULL, NULL, "%s failed inside the task (step %d)",
		   what ? what : "a system call", slot->notice.failed_step);
	return fail_in(failure, "thread %d", slot->tid);
}

int injection_wait(struct failure *failure, struct injection *injection, size_t index)
{
	struct injection_slot *slot = &injection->slots[index];

	if (!slot->running)
		return 0;
	int error = finish_program(injection, slot);
	struct program *program = TAKE_POINTER(slot->running);
	slot->on_its_way = false;
	return error ? fail_at(failure, injection, error, "lost a thread while a program ran in it")
		     : check_notice(failure, slot, program);
}

/* Returns 1 when the step is made and the program has not ended, 0 when it is still on its way, or -errno. */
static int look_at_step(struct injection *injection, struct injection_slot *slot, size_t step)
{
	struct blob_run run;
	int error = transfer(injection, slot, slot->running, &run, false);

	if (error || run.state == BLOB_RUN_LEFT)
		return was_late(injection, slot);
	if (run.state == BLOB_RUN_ENDED) {
		/* It stands, and is not waited for again. */
		slot->on_its_way = false;
		slot->running = NULL;
		return -ETIME;
	}
	return program_result(slot->running, step) != BLOB_STEP_NOT_MADE;
}

int injection_wait_step(struct failure *failure, struct injection *injection, size_t index, size_t step,
			int64_t *ret_result)
{
	struct injection_slot *slot = &injection->slots[index];
	long pause_ns = FIRST_PAUSE_NS;

	for (;;) {
		int error = wait_stopped(slot);
		int made = error ? error : look_at_step(injection, slot, step);
		if (made < 0)
			return fail_at(failure, injection, made, "lost a thread while a program ran in it");
		if (made) {
			*ret_result = program_result(slot->running, step);
			return 0;
		}
		error = send_on(slot, &pause_ns);
		if (error)
			return fail_at(failure, injection, error, "cannot let a thread go on");
	}
}

int injection_go_on(struct failure *failure, struct injection *injection, size_t index)
{
	int error = send_off(&injection->slots[index]);

	return error ? fail_at(failure, injection, error, "cannot let a thread go on") : 0;
}

/*
 * If the tool dies now, the call is made all the same; what comes to lie there afterwards is not ours, so nothing may
 * be unmapped later.
 */
void injection_begin_close(struct injection *injection)
{
	const int64_t args[6] = {injection->code, injection->code_bytes + injection->data_bytes};

	if (injection->code && !injection->lost && !injection->slots[0].on_its_way)
		injection->closing = !begin_call(injection, SYS_munmap, args, NOTHING_TO_UNMAP);
}

/* Returns 0 when the mapping is gone and the leader has its own context. */
static int remove_mapping(struct injection *injection)
{
	struct injection_slot *leader = &injection->slots[0];
	int64_t result;
	int error = 0;

	/* A failure in another process came before this one's mapping was taken. */
	if (leader->on_its_way && !injection->closing)
		error = finish_map(injection, PROT_READ | PROT_WRITE | PROT_EXEC);
	if (!injection->closing)
		injection_begin_close(injection);
	if (injection->closing)
		error = finish_call(injection, &result);
	if (injection->lost || leader->on_its_way)
		return error ? error : -ESRCH;
	int restored = restore_context(leader);
	return error ? error : restored;
}

int injection_close(struct failure *failure, struct injection *injection)
{
	int error = 0;

	if (!injection)
		return 0;
	if (injection->park_code_written)
		error = remove_mapping(injection);
	if (error)
		fail_at(failure, injection, error, "cannot take our memory out of it");
	if (injection->park_code_written) {
		int written =
			write_memory(injection, injection->park_code, injection->park_code_original, PARK_CODE_BYTES);
		if (written && !error)
			error = fail_at(failure, injection, written, "cannot restore its vDSO");
	}
	close_fd_pointer(&injection->memory_fd);
	free(injection->slots);
	free(injection);
	return error ? -failure->error : 0;
}

uint64_t injection_remnant_bytes(pid_t pid, uint64_t address)
{
	struct {
		uint8_t code[sizeof(interpreter_code)];
		uint64_t bytes;
	} __attribute__((packed)) found;
	struct iovec local = {&found, sizeof(found)}, remote = {(void *)address, sizeof(found)};

	if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != sizeof(found) ||
	    memcmp(found.code, interpreter_code, sizeof(found.code)) != 0)
		return 0;
	return found.bytes % PAGE_BYTES || found.bytes > LARGEST_REMNANT ? 0 : found.bytes;
}
