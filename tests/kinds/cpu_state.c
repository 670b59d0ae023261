/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole state of the processor: threads hold known values in the general, x87, SSE and AVX registers, in MXCSR and
 * the x87 control word, loop in user space without touching memory, and compare when told to. Another thread holds
 * them while it waits in a system call.
 */
#include "harness.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What one round leaves behind. */
struct registers {
	uint64_t general[8]; /* rbx r8 r9 r12 r13 r14 r15 and flags */
	uint64_t vector[16][4];
	uint32_t mxcsr;
	uint16_t x87_control, x87_status;
	long double x87[4];
} __attribute__((aligned(64)));

struct holder {
	pthread_t thread;
	bool in_system_call;
	struct registers before, after;
	_Atomic uint32_t release; /* the loop ends when it becomes 1 */
	atomic_uint rounds, ready;
	int pipe[2];
};

static bool have_avx;

static void fill(struct registers *registers, uint64_t seed)
{
	for (int i = 0; i < 7; i++)
		registers->general[i] = seed * 0x9e3779b97f4a7c15ULL + i;
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < 4; k++)
			registers->vector[i][k] = k < 2 || have_avx ? seed * 0xbf58476d1ce4e5b9ULL + 4 * i + k : 0;
	for (int i = 0; i < 4; i++)
		registers->x87[i] = 1.5L * seed + i + 0.0625L;
	/* Not the defaults: flush to zero, round up; double precision, round down. */
	registers->mxcsr = 0x1f80 | 0x8000 | 0x4000;
	registers->x87_control = 0x027f | 0x0400;
}

#define EACH_VECTOR(DO) \
	DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define LOAD_AVX(n) "vmovdqu 64+32*" #n "(%%rsi), %%ymm" #n "\n"
#define STORE_AVX(n) "vmovdqu %%ymm" #n ", 64+32*" #n "(%%rdi)\n"
#define LOAD_SSE(n) "movdqu 64+32*" #n "(%%rsi), %%xmm" #n "\n"
#define STORE_SSE(n) "movdqu %%xmm" #n ", 64+32*" #n "(%%rdi)\n"
#define CLOBBERED_VECTORS                                                                                          \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
		"xmm13", "xmm14", "xmm15"

/* mxcsr at 576, control word 580, status word 582, x87 values at 592, as the structure lays them out. */
#define LOAD_REST                                                                                 \
	"ldmxcsr 576(%%rsi)\n fninit\n fldcw 580(%%rsi)\n"                                        \
	"fldt 592(%%rsi)\n fldt 608(%%rsi)\n fldt 624(%%rsi)\n fldt 640(%%rsi)\n"                 \
	"mov 0(%%rsi), %%rbx\n mov 8(%%rsi), %%r8\n mov 16(%%rsi), %%r9\n mov 24(%%rsi), %%r12\n" \
	"mov 32(%%rsi), %%r13\n mov 40(%%rsi), %%r14\n mov 48(%%rsi), %%r15\n"
#define STORE_REST                                                                                \
	"stmxcsr 576(%%rdi)\n fnstcw 580(%%rdi)\n fnstsw 582(%%rdi)\n"                            \
	"fstpt 640(%%rdi)\n fstpt 624(%%rdi)\n fstpt 608(%%rdi)\n fstpt 592(%%rdi)\n fninit\n"    \
	"mov %%rbx, 0(%%rdi)\n mov %%r8, 8(%%rdi)\n mov %%r9, 16(%%rdi)\n mov %%r12, 24(%%rdi)\n" \
	"mov %%r13, 32(%%rdi)\n mov %%r14, 40(%%rdi)\n mov %%r15, 48(%%rdi)\n"
#define SPIN "1: pause\n cmpl $0, (%%rdx)\n je 1b\n"
/* read(pipe, byte, 1): rdi is needed again, rcx and r11 are the kernel's. */
#define READ                                                                              \
	"push %%rdi\n push %%rsi\n mov %%ecx, %%edi\n mov %%rdx, %%rsi\n mov $1, %%edx\n" \
	"2: xor %%eax, %%eax\n syscall\n cmp $-4, %%eax\n je 2b\n pop %%rsi\n pop %%rdi\n"
#define OPERANDS                                                                                                \
	: "+d"(release), "+c"(fd), "+S"(before), "+D"(after)                                               \
	:                                                                                                  \
	: "memory", "cc", "rax", "rbx", "r8", "r9", "r11", "r12", "r13", "r14", "r15", CLOBBERED_VECTORS, "st", \
	  "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)"

static void hold(struct registers *before, struct registers *after, void *release, long fd, bool in_system_call)
{
	/* Below the red zone of our own frame, for the pushes. */
	if (have_avx && in_system_call)
		__asm__ volatile("sub $128, %%rsp\n" EACH_VECTOR(LOAD_AVX) LOAD_REST READ STORE_REST EACH_VECTOR(
			STORE_AVX) "vzeroupper\n add $128, %%rsp\n" OPERANDS);
	else if (have_avx)
		__asm__ volatile(EACH_VECTOR(LOAD_AVX)
					 LOAD_REST SPIN STORE_REST EACH_VECTOR(STORE_AVX) "vzeroupper\n" OPERANDS);
	else if (in_system_call)
		__asm__ volatile("sub $128, %%rsp\n" EACH_VECTOR(LOAD_SSE)
					 LOAD_REST READ STORE_REST EACH_VECTOR(STORE_SSE) "add $128, %%rsp\n" OPERANDS);
	else
		__asm__ volatile(EACH_VECTOR(LOAD_SSE) LOAD_REST SPIN STORE_REST EACH_VECTOR(STORE_SSE) OPERANDS);
}

static void compare(const struct registers *before, const struct registers *after)
{
	for (int i = 0; i < 7; i++)
		CHECK(before->general[i] == after->general[i], "general register %d: %lx, was %lx", i,
		      after->general[i], before->general[i]);
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < 4; k++)
			CHECK(before->vector[i][k] == after->vector[i][k], "vector register %d part %d: %lx, was %lx",
			      i, k, after->vector[i][k], before->vector[i][k]);
	CHECK((after->mxcsr & ~0x3f) == before->mxcsr, "mxcsr %x", after->mxcsr);
	CHECK(after->x87_control == before->x87_control, "x87 control %x", after->x87_control);
	CHECK((after->x87_status >> 11 & 7) == 4, "x87 top %x", after->x87_status);
	for (int i = 0; i < 4; i++)
		CHECK(before->x87[i] == after->x87[i], "x87 register %d: %Lf, was %Lf", i, after->x87[i],
		      before->x87[i]);
}

static void *holder_main(void *argument)
{
	struct holder *holder = argument;
	_Atomic uint32_t byte = 0;

	for (;;) {
		memset(&holder->after, 0, sizeof(holder->after));
		atomic_fetch_add(&holder->ready, 1);
		hold(&holder->before, &holder->after, holder->in_system_call ? &byte : &holder->release,
		     holder->pipe[0], holder->in_system_call);
		compare(&holder->before, &holder->after);
		atomic_store(&holder->release, 0);
		atomic_fetch_add(&holder->rounds, 1);
	}
	return NULL;
}

static void wait_change(atomic_uint *counter, unsigned int from)
{
	while (atomic_load(counter) == from)
		usleep(50);
}

int main(void)
{
	static struct holder holders[4];
	unsigned int a, b, c, d;

	_Static_assert(offsetof(struct registers, mxcsr) == 576 && offsetof(struct registers, x87) == 592, "assembly");
	/* AVX and the kernel saves it (OSXSAVE). */
	have_avx = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_AVX) && (c & bit_OSXSAVE);
	for (int i = 0; i < 4; i++) {
		fill(&holders[i].before, i + 17);
		holders[i].in_system_call = i >= 2;
		MUST(pipe(holders[i].pipe));
		MUST_ZERO(pthread_create(&holders[i].thread, NULL, holder_main, &holders[i]));
		wait_change(&holders[i].ready, 0);
	}
	harness_ready();
	while (harness_wait_check()) {
		for (int i = 0; i < 4; i++) {
			unsigned int rounds = atomic_load(&holders[i].rounds), ready = atomic_load(&holders[i].ready);
			if (holders[i].in_system_call)
				CHECK(write(holders[i].pipe[1], "x", 1) == 1);
			else
				atomic_store(&holders[i].release, 1);
			wait_change(&holders[i].rounds, rounds);
			wait_change(&holders[i].ready, ready);
		}
		harness_report();
	}
	return 0;
}
