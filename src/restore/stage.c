/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/stage.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "base/fd.h"
#include "inject/context.h"
#include "interpreter_code.h"
#include "restore/memory.h"
#include "restore/shared.h"

enum {
	TASK_DEAD = 2,
	PAGE_BYTES = 4096,
	STACK_BYTES = 2048,
	LEADER_DATA_BYTES = 128 * 1024,
	THREAD_DATA_BYTES = 12 * 1024, /* dropping each of 41 capabilities is a step */
	BYTES_PER_MAPPING = 3 * sizeof(struct blob_step),
	BYTES_PER_THREAD = 512, /* what the leader needs to make one */
	BYTES_PER_SIGNAL = 512,
};

static size_t creds_bytes(const CoreEntry *core)
{
	return core->thread_core && core->thread_core->creds ? core->thread_core->creds->n_groups * sizeof(uint32_t)
							     : 0;
}

static size_t pending_bytes(const SignalQueueEntry *queue)
{
	return queue ? queue->n_signals * BYTES_PER_SIGNAL : 0;
}

static size_t slot_data_bytes(const struct restore *restore, const struct restore_task *task, size_t index)
{
	const CoreEntry *core = task->thread_cores[index];
	size_t bytes = THREAD_DATA_BYTES + creds_bytes(core) +
		       (core->thread_core ? pending_bytes(core->thread_core->signals_p) : 0) + restore->seccomp_bytes;

	if (index == 0)
		bytes += LEADER_DATA_BYTES + task->mm->n_vmas * BYTES_PER_MAPPING +
			 task->thread_count * BYTES_PER_THREAD + pending_bytes(core->tc->signals_s) +
			 (core->tc->timers ? core->tc->timers->n_posix * BYTES_PER_SIGNAL : 0);
	return (bytes + 63) & ~(size_t)63;
}

static int plan_task(struct restore *restore, struct restore_task *task)
{
	struct stage *stage = arena_alloc(&restore->arena, sizeof(*stage));
	uint64_t at = PAGE_BYTES + 64; /* the code has a page of its own */

	stage->slots = arena_alloc(&restore->arena, task->thread_count * sizeof(*stage->slots));
	for (size_t i = 0; i < task->thread_count; i++) {
		struct stage_slot *slot = &stage->slots[i];
		slot->run = at;
		at += (sizeof(struct blob_run) + 63) & ~(size_t)63;
		at += STACK_BYTES;
		slot->stack = at;
		slot->data = at;
		slot->data_bytes = slot_data_bytes(restore, task, i);
		at += slot->data_bytes;
	}
	stage->bytes = (at + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
	stage->address = restore_stage_address(restore, stage->bytes);
	if (!stage->address)
		return fail(&restore->failure, ENOMEM, "restore-stage", NULL, NULL, "no free addresses are left");
	stage->code = stage->address;
	stage->notify = stage->address + PAGE_BYTES;
	for (size_t i = 0; i < task->thread_count; i++) {
		stage->slots[i].run += stage->address;
		stage->slots[i].stack += stage->address;
		stage->slots[i].data += stage->address;
	}
	task->stage = stage;
	return 0;
}

int stage_plan(struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++) {
		int error = restore->tasks[i]->state == TASK_DEAD ? 0 : plan_task(restore, restore->tasks[i]);
		if (error < 0)
			return error;
	}
	return 0;
}

int stage_map(struct restore *restore, const struct stage *stage)
{
	void *address = mmap((void *)stage->address, stage->bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	if (address == MAP_FAILED)
		return fail_errno(&restore->failure, errno, "restore-stage", NULL, NULL, "cannot map the stage");
	memcpy((void *)stage->code, interpreter_code, sizeof(interpreter_code));
	memcpy((void *)stage->notify, &restore->notify_fd, sizeof(restore->notify_fd));
	atomic_store(&restore->shared->notify_fd[restore->self->index], restore->notify_fd);
	if (mprotect((void *)stage->code, PAGE_BYTES, PROT_READ | PROT_EXEC) < 0)
		return fail_errno(&restore->failure, errno, "restore-stage", NULL, NULL,
				  "cannot make the stage executable");
	return 0;
}

struct program *stage_program(const struct stage *stage, size_t index)
{
	return program_new((remote_t){stage->slots[index].data}, stage->slots[index].data_bytes);
}

int stage_place(struct restore *restore, pid_t pid, const struct stage *stage, size_t index, uint32_t id,
		struct program *program)
{
	const struct stage_slot *slot = &stage->slots[index];
	size_t data = program_data_size(program), steps = program_step_count(program) * sizeof(struct blob_step);
	struct blob_run run = {
		.steps = slot->data + data,
		.count = program_step_count(program),
		.id = id,
		.notify = stage->notify,
	};

	if (program_overflow(program) || data + steps > slot->data_bytes)
		return fail(&restore->failure, E2BIG, "restore-stage", NULL, NULL,
			    "the last program of a thread needs %zu bytes, planned were %zu", data + steps,
			    slot->data_bytes);
	if (!pid) {
		memcpy((void *)slot->run, &run, sizeof(run));
		if (data)
			memcpy((void *)slot->data, program_data_buffer(program), data);
		memcpy((void *)(slot->data + data), program_steps(program), steps);
		return 0;
	}
	struct iovec local[] = {
		{&run, sizeof(run)}, {program_data_buffer(program), data}, {program_steps(program), steps}};
	struct iovec remote[] = {
		{(void *)slot->run, sizeof(run)}, {(void *)slot->data, data}, {(void *)(slot->data + data), steps}};
	if (process_vm_writev(pid, local, 3, remote, 3, 0) != (ssize_t)(sizeof(run) + data + steps))
		return fail_errno(&restore->failure, errno, "restore-stage", NULL, NULL, "cannot write into process %d",
				  pid);
	return 0;
}

uint64_t stage_call_instruction(const struct stage *stage)
{
	const uint8_t *found = memmem(interpreter_code, sizeof(interpreter_code), context_call_instruction,
				      context_call_instruction_bytes);

	return stage->code + (found - interpreter_code);
}

void stage_enter(const struct stage *stage)
{
	__asm__ volatile("mov %[stack], %%rsp\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call *%[code]"
			 :
			 : [stack] "r"(stage->slots[0].stack), [code] "r"(stage->code), "D"(stage->slots[0].run)
			 : "memory");
	__builtin_unreachable();
}
