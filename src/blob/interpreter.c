/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only code of criu that runs inside a task: it executes a list of system calls, reports the end and waits.
 *
 * On entry all signals are blocked by the tool, rdi points to a struct blob_run, and rsp is a stack of the tool's.
 * After the last step it writes a notice to the notification descriptor and reads from it: the tool never answers,
 * it takes the thread away with ptrace. When the read returns, the tool is dead; then the thread leaves through code
 * that brings its own context back (a dump), or the process ends (a restore that lost its tool).
 *
 * Position independent, no libc, no relocations, no data; general registers only, so that the thread's vector state
 * stays where it is: in the CPU.
 */
#include "blob/wire.h"

enum {
	NUMBER_READ = 0,
	NUMBER_CLOSE = 3,
	NUMBER_MUNMAP = 11,
	NUMBER_SENDTO = 44,
	NO_SIGNAL = 0x4000, /* MSG_NOSIGNAL: a dead tool must not leave a SIGPIPE behind */
	NUMBER_EXIT_GROUP = 231,
	ERROR_RANGE = 4095,
	ERROR_INTERRUPTED = 4
};

static inline __attribute__((always_inline)) int64_t call(uint64_t number, const int64_t *args)
{
	register int64_t r10 __asm__("r10") = args[3];
	register int64_t r8 __asm__("r8") = args[4];
	register int64_t r9 __asm__("r9") = args[5];
	int64_t result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* The new thread starts behind the system call with the registers of its parent but on its own stack. */
static inline __attribute__((always_inline)) int64_t spawn(uint64_t number, const int64_t *args)
{
	int64_t result;

	__asm__ volatile("mov %[run], %%r12\n\t"
			 "syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "mov %%r12, %%rdi\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call blob_main\n\t"
			 "1:"
			 : "=a"(result)
			 : "a"(number), "D"(args[0]), "S"(args[1]), [run] "r"(args[2])
			 : "rcx", "r11", "r12", "memory");
	return result;
}

__attribute__((noreturn, used, section(".text.entry"))) void blob_main(struct blob_run *run)
{
	struct blob_step *steps = (struct blob_step *)run->steps;
	int64_t args[6];

	run->notice.id = run->id;
	run->notice.failed_step = -1;
	for (uint32_t i = 0; i < run->count; i++) {
		struct blob_step *step = &steps[i];

		for (unsigned a = 0; a < 6; a++)
			args[a] =
				step->flags & (BLOB_STEP_RESULT_OF << a) ? steps[step->args[a]].result : step->args[a];
		do
			step->result =
				step->flags & BLOB_STEP_SPAWN ? spawn(step->number, args) : call(step->number, args);
		while ((step->flags & BLOB_STEP_UNTIL_FAILS) && step->result >= 0);
		if (step->flags & (BLOB_STEP_MAY_FAIL | BLOB_STEP_UNTIL_FAILS))
			continue;
		if (step->flags & BLOB_STEP_EXPECT ? step->result != step->expected
						   : (uint64_t)step->result >= (uint64_t)-ERROR_RANGE) {
			run->notice.failed_step = i;
			run->notice.result = step->result;
			break;
		}
	}
	args[0] = *(volatile int *)run->notify;
	args[1] = (int64_t)&run->notice;
	args[2] = sizeof(run->notice);
	args[3] = NO_SIGNAL;
	args[4] = args[5] = 0;
	call(NUMBER_SENDTO, args);
	args[2] = 1;
	while (call(NUMBER_READ, args) == -ERROR_INTERRUPTED)
		;
	if (run->leave) {
		/* The other threads are in their read already and keep the socket until it returns. */
		if (run->id == 0)
			call(NUMBER_CLOSE, args);
		if (run->unmap_bytes)
			__asm__ volatile("jmp *%[leave]"
					 :
					 : "a"(NUMBER_MUNMAP), "D"(run->unmap),
					   "S"(run->unmap_bytes), [leave] "r"(run->leave)
					 : "memory");
		((void (*)(void))run->leave)();
	}
	args[0] = 1;
	for (;;)
		call(NUMBER_EXIT_GROUP, args);
}
