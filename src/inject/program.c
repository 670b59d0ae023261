/* SPDX-License-Identifier: Apache-2.0 */
#include "inject/program.h"

#include <string.h>
#include <sys/syscall.h>

#include "base/fd.h"

struct program {
	struct blob_step *steps;
	const char **descriptions;
	size_t step_count, step_capacity;
	remote_t data_address;
	char *data;
	size_t data_size, data_capacity, data_limit, overflow;
};

struct program *program_new(remote_t data, size_t data_capacity)
{
	struct program *program = xcalloc(1, sizeof(*program));

	program->data_address = data;
	program->data_limit = data_capacity;
	return program;
}

void program_free(struct program *program)
{
	if (!program)
		return;
	free(program->steps);
	free(program->descriptions);
	free(program->data);
	free(program);
}

size_t program_call(struct program *program, long number, const int64_t args[6], uint32_t flags)
{
	if (program->step_count == program->step_capacity) {
		program->step_capacity = program->step_capacity ? program->step_capacity * 2 : 32;
		program->steps = xrealloc_array(program->steps, program->step_capacity, sizeof(*program->steps));
		program->descriptions =
			xrealloc_array(program->descriptions, program->step_capacity, sizeof(*program->descriptions));
	}
	struct blob_step *step = &program->steps[program->step_count];
	*step = (struct blob_step){.number = number, .flags = flags};
	memcpy(step->args, args, sizeof(step->args));
	program->descriptions[program->step_count] = NULL;
	return program->step_count++;
}

void program_expect(struct program *program, size_t step, int64_t expected)
{
	program->steps[step].flags |= BLOB_STEP_EXPECT;
	program->steps[step].expected = expected;
}

void program_wait(struct program *program, uint64_t patience_ns)
{
	const uint64_t second_ns = 1000000000;
	const struct blob_time patience = {(int64_t)(patience_ns / second_ns), (int64_t)(patience_ns % second_ns)};
	remote_t until = program_copy(program, &patience, sizeof(patience));
	remote_t no_signals = program_reserve(program, sizeof(uint64_t));

	if (program->step_count)
		program->steps[program->step_count - 1].result = BLOB_STEP_NOT_MADE;
	PROGRAM_TRY(program, SYS_rt_sigtimedwait, (int64_t)no_signals.address, 0, (int64_t)until.address,
		    sizeof(uint64_t));
}

void program_describe(struct program *program, const char *text)
{
	if (program->step_count)
		program->descriptions[program->step_count - 1] = text;
}

/*
 * The tool's buffer grows and moves; the address in the task is fixed from the start. Beyond the limit the address
 * is meaningless, the overflow is counted and the runner refuses the program.
 */
remote_t program_reserve(struct program *program, size_t size)
{
	size_t offset = program->data_size;

	size = (size + 7) & ~(size_t)7;
	if (size > program->data_limit - program->data_size) {
		program->overflow += size;
		return program->data_address;
	}
	if (program->data_size + size > program->data_capacity) {
		size_t capacity = program->data_capacity ? program->data_capacity * 2 : 1024;
		while (capacity < program->data_size + size)
			capacity *= 2;
		program->data = xrealloc_array(program->data, capacity, 1);
		memset(program->data + program->data_capacity, 0, capacity - program->data_capacity);
		program->data_capacity = capacity;
	}
	program->data_size += size;
	return (remote_t){program->data_address.address + offset};
}

remote_t program_copy(struct program *program, const void *data, size_t size)
{
	size_t before = program->overflow;
	remote_t where = program_reserve(program, size);

	if (program->overflow == before && size)
		memcpy(program->data + (where.address - program->data_address.address), data, size);
	return where;
}

int64_t program_result(const struct program *program, size_t step)
{
	return program->steps[step].result;
}

const void *program_data(const struct program *program, remote_t where)
{
	return program->data + (where.address - program->data_address.address);
}

size_t program_step_count(const struct program *program)
{
	return program->step_count;
}

const char *program_step_description(const struct program *program, size_t step)
{
	return step < program->step_count ? program->descriptions[step] : NULL;
}

struct blob_step *program_steps(struct program *program)
{
	return program->steps;
}

remote_t program_data_address(const struct program *program)
{
	return program->data_address;
}

void *program_data_buffer(struct program *program)
{
	return program->data;
}

size_t program_data_size(const struct program *program)
{
	return program->data_size;
}

size_t program_overflow(const struct program *program)
{
	return program->overflow;
}
