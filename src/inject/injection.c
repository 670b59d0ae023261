/* SPDX-License-Identifier: Apache-2.0 */
#include "inject/injection.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "inject/ptrace.h"
#include "interpreter_code.h"

enum {
	PAGE_BYTES = 4096,
	SLOT_STACK_BYTES = 1024,
	CALL_CODE_BYTES = LEAVE_CODE_BYTES, /* the call instruction and its leave code */
	STUCK_CHECK_MS = 200,
};

/* One thread's part of the data mapping: [blob_run][stack][data, steps]. */
struct injection_slot {
	pid_t tid;
	struct thread_context context;
	uint64_t address;
	size_t bytes;
	struct program *running; /* started and not yet waited for */
	bool notified;
	struct blob_notice notice;
};

struct injection {
	pid_t pid;
	int pidfd;
	int memory_fd; /* /proc/PID/mem */
	int socket_fd; /* our end */
	int remote_notify_fd;
	uint64_t call_code; /* in the vDSO's tail */
	uint8_t call_code_original[CALL_CODE_BYTES];
	bool call_code_written;
	uint64_t code, data; /* 0 = not mapped */
	size_t code_bytes, data_bytes;
	struct injection_slot *slots;
	size_t slot_count;
};

static int fail_at(struct failure *failure, const struct injection *injection, int error, const char *what)
{
	fail_errno(failure, error, "inject", NULL, NULL, "%s", what);
	return fail_in(failure, "process %d", injection->pid);
}

static int write_memory(struct injection *injection, uint64_t address, const void *data, size_t size)
{
	return pwrite_full(injection->memory_fd, data, size, address);
}

int injection_remote_call(struct failure *failure, struct injection *injection, long number, const int64_t args[6],
			  int64_t *ret_result)
{
	struct injection_slot *leader = &injection->slots[0];
	int error = context_redirect_to_call(leader->tid, &leader->context, injection->call_code, number, args);

	if (!error)
		error = thread_run_to_syscall(leader->tid);
	if (!error)
		error = thread_run_to_syscall(leader->tid);
	if (!error)
		error = context_call_result(leader->tid, ret_result);
	int restored = context_restore(leader->tid, &leader->context);
	if (error || restored)
		return fail_at(failure, injection, error ? error : restored, "cannot run a system call inside it");
	return 0;
}

/* The end of the vDSO's last page holds nothing that runs: padding, before it the section headers for debuggers. */
static int write_call_code(struct failure *failure, struct injection *injection, const struct injection_target *target)
{
	uint8_t code[CALL_CODE_BYTES] = {};

	if (target->vdso_end < target->vdso_start + PAGE_BYTES)
		return fail(failure, EOPNOTSUPP, "inject-no-vdso", NULL, "boot without vdso=0",
			    "process %d has no vDSO", target->pid);
	injection->call_code = target->vdso_end - CALL_CODE_BYTES;
	int error =
		pread_full(injection->memory_fd, injection->call_code_original, CALL_CODE_BYTES, injection->call_code);
	if (error)
		return fail_at(failure, injection, error, "cannot read its vDSO");
	memcpy(code, context_call_instruction, context_call_instruction_bytes);
	context_leave_code(&injection->slots[0].context, injection->call_code + context_call_instruction_bytes,
			   code + context_call_instruction_bytes);
	error = write_memory(injection, injection->call_code, code, sizeof(code));
	if (error)
		return fail_at(failure, injection, error, "cannot write into its vDSO");
	injection->call_code_written = true;
	return 0;
}

/* The limits that a new private mapping counts for. */
static const int memory_limits[] = {RLIMIT_AS, RLIMIT_DATA};

/* A process that uses all it may get gets our pages beside that: its soft limits are up for the time of one call. */
static int map_above_limits(struct failure *failure, struct injection *injection, const int64_t args[6],
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
	int error = injection_remote_call(failure, injection, SYS_mmap, args, ret_result);
	for (size_t i = 0; i < ARRAY_SIZE(memory_limits); i++)
		if (raised[i])
			prlimit(injection->pid, memory_limits[i], &before[i], NULL);
	return error;
}

static int remote_map(struct failure *failure, struct injection *injection, size_t bytes, int protection,
		      uint64_t *ret_address)
{
	const int64_t args[6] = {0, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0};
	int64_t result = 0;
	int error = injection_remote_call(failure, injection, SYS_mmap, args, &result);

	if (!error && result == -ENOMEM)
		error = map_above_limits(failure, injection, args, &result);
	if (error)
		return error;
	if (result < 0 && result > -PAGE_BYTES)
		return fail_at(failure, injection, result, "cannot map memory inside it");
	*ret_address = result;
	return 0;
}

/*
 * One mapping for both where the process may have memory that is writable and executable: each call costs two stops.
 * Under PR_SET_MDWE or SELinux it may not, and gets two.
 */
static int map_code_and_data(struct failure *failure, struct injection *injection)
{
	struct failure denied = {};
	int error = remote_map(&denied, injection, injection->code_bytes + injection->data_bytes,
			       PROT_READ | PROT_WRITE | PROT_EXEC, &injection->code);

	if (!error) {
		injection->data = injection->code + injection->code_bytes;
		return 0;
	}
	error = remote_map(failure, injection, injection->code_bytes, PROT_READ | PROT_EXEC, &injection->code);
	return error ? error
		     : remote_map(failure, injection, injection->data_bytes, PROT_READ | PROT_WRITE, &injection->data);
}

/* A socket pair whose far end is ours: it reports ended programs, and tells the task when the tool is gone. */
static int connect_socket(struct failure *failure, struct injection *injection)
{
	int64_t result = 0;
	const int64_t pair_args[6] = {AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, injection->data};
	int pair[2];
	int error = injection_remote_call(failure, injection, SYS_socketpair, pair_args, &result);

	if (error)
		return error;
	if (result < 0)
		return fail_at(failure, injection, result, "cannot make a socket pair inside it");
	error = pread_full(injection->memory_fd, pair, sizeof(pair), injection->data);
	if (error)
		return fail_at(failure, injection, error, "cannot read its memory");
	injection->remote_notify_fd = pair[1];
	injection->socket_fd = syscall(SYS_pidfd_getfd, injection->pidfd, pair[0], 0);
	if (injection->socket_fd < 0)
		error = fail_at(failure, injection, errno, "pidfd_getfd");
	const int64_t close_args[6] = {pair[0]};
	int closed = injection_remote_call(failure, injection, SYS_close, close_args, &result);
	if (error || closed)
		return error ? error : closed;
	error = write_memory(injection, injection->data, &injection->remote_notify_fd, sizeof(int));
	return error ? fail_at(failure, injection, error, "cannot write its memory") : 0;
}

static void lay_out(struct injection *injection, const struct injection_target *target)
{
	size_t code = (sizeof(interpreter_code) + LEAVE_CODE_BYTES - 1) / LEAVE_CODE_BYTES * LEAVE_CODE_BYTES;
	size_t fixed = sizeof(struct blob_run) + SLOT_STACK_BYTES, data = 64;

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
	size_t first = (sizeof(interpreter_code) + LEAVE_CODE_BYTES - 1) / LEAVE_CODE_BYTES * LEAVE_CODE_BYTES;

	return injection->code + first + index * LEAVE_CODE_BYTES;
}

static int write_code(struct failure *failure, struct injection *injection)
{
	_cleanup_free_ uint8_t *code = xcalloc(1, injection->code_bytes);

	memcpy(code, interpreter_code, sizeof(interpreter_code));
	for (size_t i = 0; i < injection->slot_count; i++) {
		uint64_t address = leave_code_address(injection, i);
		context_leave_code(&injection->slots[i].context, address, code + (address - injection->code));
	}
	int error = write_memory(injection, injection->code, code, injection->code_bytes);
	return error ? fail_at(failure, injection, error, "cannot write code into it") : 0;
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
	return 0;
}

int injection_open(struct failure *failure, const struct injection_target *target, struct injection **ret_injection)
{
	struct injection *injection = xcalloc(1, sizeof(*injection));

	injection->pid = target->pid;
	injection->pidfd = target->pidfd;
	injection->socket_fd = -1;
	injection->memory_fd = openat(target->proc_dirfd, "mem", O_RDWR | O_CLOEXEC);
	int error = injection->memory_fd < 0 ? fail_at(failure, injection, errno, "cannot open its memory") : 0;
	if (!error)
		error = save_contexts(failure, injection, target);
	if (!error) {
		lay_out(injection, target);
		error = write_call_code(failure, injection, target);
	}
	if (!error)
		error = map_code_and_data(failure, injection);
	if (!error)
		error = write_code(failure, injection);
	if (!error)
		error = connect_socket(failure, injection);
	if (error) {
		struct failure ignored = {};
		injection_close(&ignored, injection);
		return error;
	}
	for (size_t i = 0; i < injection->slot_count; i++)
		injection->slots[i].address += injection->data;
	*ret_injection = injection;
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
	struct injection_slot *slot = &injection->slots[index];
	size_t data = program_data_size(program), steps = program_step_count(program) * sizeof(struct blob_step);
	struct blob_run run = {
		.steps = slot_data_address(slot) + data,
		.count = program_step_count(program),
		.id = index,
		.notify = injection->data,
		.leave = leave_code_address(injection, index),
	};

	/* A single thread can take everything of ours with it, from the vDSO's tail, when the tool dies. */
	if (injection->slot_count == 1 && injection->data == injection->code + injection->code_bytes) {
		run.leave = injection->call_code;
		run.unmap = injection->code;
		run.unmap_bytes = injection->code_bytes + injection->data_bytes;
	}

	if (program_overflow(program) || data + steps > slot_data_bytes(slot))
		return fail_at(failure, injection, -E2BIG, "a program for it is larger than planned");
	int error = transfer(injection, slot, program, &run, true);
	if (!error)
		error = context_redirect(slot->tid, &slot->context, injection->code, slot->address,
					 slot->address + sizeof(run) + SLOT_STACK_BYTES);
	if (!error && ptrace(PTRACE_CONT, slot->tid, 0, 0) < 0)
		error = -errno;
	if (error) {
		context_restore(slot->tid, &slot->context);
		return fail_at(failure, injection, error, "cannot start a program in a thread");
	}
	slot->running = program;
	slot->notified = false;
	return 0;
}

/* A thread that met a stop on its way (a signal from outside that cannot be blocked) is sent on. */
static int unstick(struct injection *injection)
{
	for (size_t i = 0; i < injection->slot_count; i++) {
		struct injection_slot *slot = &injection->slots[i];
		int status;
		if (!slot->running || slot->notified || waitpid(slot->tid, &status, __WALL | WNOHANG) != slot->tid)
			continue;
		if (!WIFSTOPPED(status))
			return -ESRCH;
		ptrace(PTRACE_CONT, slot->tid, 0, status >> 16 ? 0 : WSTOPSIG(status));
	}
	return 0;
}

static int receive_notices(struct injection *injection, size_t expected)
{
	struct blob_notice notices[64];
	size_t partial = 0;

	while (expected) {
		struct pollfd ready = {injection->socket_fd, POLLIN};
		int count = poll(&ready, 1, STUCK_CHECK_MS);
		if (count < 0 && errno != EINTR)
			return -errno;
		if (count <= 0) {
			int error = unstick(injection);
			if (error)
				return error;
			continue;
		}
		ssize_t length = read(injection->socket_fd, (char *)notices + partial, sizeof(notices) - partial);
		if (length <= 0)
			return length ? -errno : -ESRCH;
		length += partial;
		for (size_t i = 0; i < length / sizeof(notices[0]) && expected; i++) {
			if (notices[i].id >= injection->slot_count)
				return -EPROTO;
			struct injection_slot *slot = &injection->slots[notices[i].id];
			if (!slot->running || slot->notified)
				return -EPROTO;
			slot->notice = notices[i];
			slot->notified = true;
			expected--;
		}
		partial = length % sizeof(notices[0]);
		memmove(notices, (char *)notices + length - partial, partial);
	}
	return 0;
}

/* Stops the threads that ran and gives them their own contexts back. */
static int stop_and_restore(struct injection *injection)
{
	int result = 0;

	for (size_t i = 0; i < injection->slot_count; i++)
		if (injection->slots[i].running && ptrace(PTRACE_INTERRUPT, injection->slots[i].tid, 0, 0) < 0)
			result = -errno;
	for (size_t i = 0; i < injection->slot_count; i++) {
		struct injection_slot *slot = &injection->slots[i];
		int signal;
		if (!slot->running)
			continue;
		int stop = thread_wait_interrupted(slot->tid, &signal);
		int error = stop < 0 ? stop : stop == THREAD_STOP_GONE ? -ESRCH : 0;
		if (!error)
			error = context_restore(slot->tid, &slot->context);
		if (error)
			result = error;
	}
	return result;
}

static int collect_results(struct failure *failure, struct injection *injection)
{
	int result = 0;

	for (size_t i = 0; i < injection->slot_count; i++) {
		struct injection_slot *slot = &injection->slots[i];
		struct program *program = TAKE_POINTER(slot->running);
		struct blob_run run;
		if (!program || result)
			continue;
		int error = transfer(injection, slot, program, &run, false);
		if (error) {
			result = fail_at(failure, injection, error, "cannot read the results of a program");
		} else if (slot->notice.failed_step >= 0) {
			const char *what = program_step_description(program, slot->notice.failed_step);
			fail_errno(failure, slot->notice.result, "inject-call", NULL, NULL,
				   "%s failed inside the task (step %d)", what ? what : "a system call",
				   slot->notice.failed_step);
			result = fail_in(failure, "thread %d", slot->tid);
		}
	}
	return result;
}

int injection_wait(struct failure *failure, struct injection *injection)
{
	size_t expected = 0;

	for (size_t i = 0; i < injection->slot_count; i++)
		expected += injection->slots[i].running != NULL;
	int error = receive_notices(injection, expected);
	int stopped = stop_and_restore(injection);
	if (error || stopped) {
		for (size_t i = 0; i < injection->slot_count; i++)
			injection->slots[i].running = NULL;
		return fail_at(failure, injection, error ? error : stopped, "lost a thread while a program ran in it");
	}
	return collect_results(failure, injection);
}

static int unmap(struct failure *failure, struct injection *injection)
{
	bool together = injection->data == injection->code + injection->code_bytes;
	size_t bytes = injection->code_bytes + (together ? injection->data_bytes : 0);
	int64_t result;
	int error = 0;

	if (injection->data && !together)
		error = injection_remote_call(failure, injection, SYS_munmap,
					      (const int64_t[6]){injection->data, injection->data_bytes}, &result);
	return error ? error
		     : injection_remote_call(failure, injection, SYS_munmap, (const int64_t[6]){injection->code, bytes},
					     &result);
}

int injection_close(struct failure *failure, struct injection *injection)
{
	int64_t result;
	int error = 0;

	if (!injection)
		return 0;
	if (injection->remote_notify_fd > 0 && injection->socket_fd >= 0)
		error = injection_remote_call(failure, injection, SYS_close,
					      (const int64_t[6]){injection->remote_notify_fd}, &result);
	if (injection->code && !error)
		error = unmap(failure, injection);
	if (injection->call_code_written) {
		int written =
			write_memory(injection, injection->call_code, injection->call_code_original, CALL_CODE_BYTES);
		if (written && !error)
			error = fail_at(failure, injection, written, "cannot restore its vDSO");
	}
	close_fd_pointer(&injection->memory_fd);
	close_fd_pointer(&injection->socket_fd);
	free(injection->slots);
	free(injection);
	return error;
}

bool injection_is_remnant(pid_t pid, uint64_t address)
{
	uint8_t code[sizeof(interpreter_code)];
	struct iovec local = {code, sizeof(code)}, remote = {(void *)address, sizeof(code)};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == sizeof(code) &&
	       !memcmp(code, interpreter_code, sizeof(code));
}
