/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only code of criu that runs inside a task: it executes a list of system calls, reports the end and waits.
 *
 * On entry all signals are blocked by the tool, rdi points to a struct blob_run, and rsp is a stack of the tool's.
 * In a dump the end is a word in memory, and the wait is one that needs no descriptor and no signal and that has an
 * end: the tool stops the thread with ptrace long before. A thread that nobody stops, or that comes out of a stop
 * where it stands, has lost its tool; it leaves through code that brings its own context back.
 * In a restore it writes a notice to the notification descriptor and polls it: the tool never answers, and when the
 * poll returns, the tool is dead and the process ends. A read would wait as long, but those who read are woken whenever
 * the tool has taken a notice, all of them, so that a thousand threads woke each other up a million times. ppoll()
 * leaves nothing behind for a restart, as poll() does.
 *
 * Position independent, no libc, no relocations, no data; general registers only, so that the thread's vector state
 * stays where it is: in the CPU.
 */
#include "blob/wire.h"

enum {
	NUMBER_MUNMAP = 11,
	NUMBER_SENDTO = 44,
	NO_SIGNAL = 0x4000, /* MSG_NOSIGNAL: a dead tool must not leave a SIGPIPE behind */
	NUMBER_RT_SIGTIMEDWAIT = 128,
	SIGNAL_SET_BYTES = 8,
	NUMBER_EXIT_GROUP = 231,
	NUMBER_PPOLL = 271,
	POLL_IN = 1,
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

/* Unlike other waits with a time limit this one does not touch what the kernel keeps of an interrupted call. */
static inline __attribute__((always_inline, noreturn)) void wait_and_leave(struct blob_run *run)
{
	const int64_t args[6] = {(int64_t)&run->no_signals, 0, (int64_t)&run->patience, SIGNAL_SET_BYTES};

	*(volatile uint32_t *)&run->state = BLOB_RUN_ENDED;
	call(NUMBER_RT_SIGTIMEDWAIT, args);
	*(volatile uint32_t *)&run->state = BLOB_RUN_LEFT;
	if (run->unmap_bytes)
		__asm__ volatile("jmp *%[leave]"
				 :
				 : "a"(NUMBER_MUNMAP), "D"(run->unmap), "S"(run->unmap_bytes), [leave] "r"(run->leave)
				 : "memory");
	((void (*)(void))run->leave)();
	__builtin_unreachable();
}

static inline __attribute__((always_inline, noreturn)) void report_and_exit(struct blob_run *run)
{
	const int notify = *(volatile int *)run->notify;
	struct {
		int fd;
		short events, returned;
	} tool = {notify, POLL_IN, 0};
	int64_t args[6] = {notify, (int64_t)&run->notice, sizeof(run->notice), NO_SIGNAL};

	call(NUMBER_SENDTO, args);
	args[0] = (int64_t)&tool;
	args[1] = 1;
	args[2] = args[3] = 0;
	while (call(NUMBER_PPOLL, args) == -ERROR_INTERRUPTED)
		;
	args[0] = 1;
	for (;;)
		call(NUMBER_EXIT_GROUP, args);
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
	if (run->leave)
		wait_and_leave(run);
	report_and_exit(run);
}
