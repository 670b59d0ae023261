/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fork that leaves criu's memory as a restored task does: through the interpreter, in a few pages of its own. Their
 * content is made before the fork, so that the child only has to jump. All signals are blocked until it ends: no
 * handler of criu's may run without criu's memory.
 */
#include "inject/bare_process.h"

#include <errno.h>
#include <limits.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "interpreter_code.h"

enum {
	PAGE_BYTES = 4096,
	STACK_BYTES = 1024,
	ALL_BYTES = 4 * PAGE_BYTES, /* the code's page, then run, stack, data and steps */
	NO_DESCRIPTOR = INT_MAX,    /* not -1: poll(2) ignores that, and would wait for ever */
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

struct pages {
	char *code;
	struct blob_run *run;
	int *notify;
	char *stack; /* its top */
	char *data;
	size_t data_bytes;
};

/* What ties a process to criu. The kernel would write into the rseq area that glibc has registered. */
static void plan_leave(struct program *program, const struct pages *pages)
{
	enum { UNREGISTER = 1, AREA_BYTES = 32 };
	uint64_t start = (uint64_t)pages->code, end = start + ALL_BYTES;

	if (__rseq_size)
		PROGRAM_CALL(program, SYS_rseq, (int64_t)((char *)__builtin_thread_pointer() + __rseq_offset),
			     AREA_BYTES, UNREGISTER, RSEQ_SIG);
	PROGRAM_CALL(program, SYS_setsid);
	PROGRAM_CALL(program, SYS_close_range, 0, UINT_MAX, 0);
	PROGRAM_CALL(program, SYS_munmap, PAGE_BYTES, start - PAGE_BYTES);
	PROGRAM_CALL(program, SYS_munmap, end, ADDRESS_SPACE_END - end);
}

static int map_pages(struct pages *pages)
{
	void *area = mmap(NULL, ALL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	_Static_assert(sizeof(interpreter_code) <= PAGE_BYTES, "the interpreter fits into its page");
	if (area == MAP_FAILED)
		return -errno;
	pages->code = area;
	memcpy(pages->code, interpreter_code, sizeof(interpreter_code));
	pages->run = (struct blob_run *)(pages->code + PAGE_BYTES);
	pages->notify = (int *)(pages->run + 1);
	*pages->notify = NO_DESCRIPTOR;
	pages->stack = pages->code + PAGE_BYTES + STACK_BYTES;
	pages->data = pages->stack;
	pages->data_bytes = ALL_BYTES - PAGE_BYTES - STACK_BYTES;
	return mprotect(pages->code, PAGE_BYTES, PROT_READ | PROT_EXEC) < 0 ? -errno : 0;
}

static int place(const struct pages *pages, struct program *program)
{
	size_t data = program_data_size(program), steps = program_step_count(program) * sizeof(struct blob_step);

	if (program_overflow(program) || data + steps > pages->data_bytes)
		return -E2BIG;
	if (data)
		memcpy(pages->data, program_data_buffer(program), data);
	memcpy(pages->data + data, program_steps(program), steps);
	*pages->run = (struct blob_run){
		.steps = (uint64_t)(pages->data + data),
		.count = (uint32_t)program_step_count(program),
		.notify = (uint64_t)pages->notify,
	};
	return 0;
}

static void __attribute__((noreturn)) enter(const struct pages *pages)
{
	__asm__ volatile("mov %[stack], %%rsp\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call *%[code]"
			 :
			 : [stack] "r"(pages->stack), [code] "r"(pages->code), "D"(pages->run)
			 : "memory");
	__builtin_unreachable();
}

static pid_t start(const struct pages *pages)
{
	struct clone_args args = {};
	sigset_t all, before;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		enter(pages);
	int error = pid < 0 ? -errno : 0;
	sigprocmask(SIG_SETMASK, &before, NULL);
	return error ? error : pid;
}

pid_t bare_process_start(void (*compose)(struct program *program, const void *context), const void *context)
{
	struct pages pages = {};
	int error = map_pages(&pages);
	pid_t pid = error;

	if (!error) {
		struct program *program = program_new((remote_t){(uint64_t)pages.data}, pages.data_bytes);
		plan_leave(program, &pages);
		compose(program, context);
		PROGRAM_CALL(program, SYS_exit_group, 0);
		error = place(&pages, program);
		program_free(program);
		pid = error ? error : start(&pages);
	}
	if (pages.code)
		munmap(pages.code, ALL_BYTES);
	return pid;
}

int bare_process_wait(pid_t pid)
{
	siginfo_t info = {};

	while (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT | __WCLONE) < 0)
		if (errno != EINTR)
			return -errno;
	return info.si_code == CLD_EXITED ? info.si_status : -ECHILD;
}

void bare_process_end(pid_t pid)
{
	while (waitpid(pid, NULL, __WCLONE) < 0 && errno == EINTR)
		;
}
