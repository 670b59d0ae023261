/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vDSO: the address in the auxiliary vector is mapped and is an ELF image, and the C library's clock_gettime(),
 * which remembers addresses inside it, reads the clock without a system call.
 */
#include "harness.h"

#include <elf.h>
#include <errno.h>
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <linux/audit.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* In a child that may not make the system call: either the vDSO does it, or the child dies. */
static bool clock_works_without_kernel(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = 4, .filter = program};
	int status;
	pid_t child = fork();

	if (child == 0) {
		struct timespec first, second;
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
			_exit(2);
		clock_gettime(CLOCK_MONOTONIC, &first);
		clock_gettime(CLOCK_MONOTONIC, &second);
		_exit(second.tv_sec < first.tv_sec);
	}
	return waitpid(child, &status, 0) == child && status == 0;
}

static void check_clock(clockid_t clock)
{
	struct timespec fast, slow, fast_again;

	clock_gettime(clock, &fast);
	syscall(SYS_clock_gettime, clock, &slow);
	clock_gettime(clock, &fast_again);
	int64_t a = fast.tv_sec * 1000000000LL + fast.tv_nsec, b = slow.tv_sec * 1000000000LL + slow.tv_nsec,
		c = fast_again.tv_sec * 1000000000LL + fast_again.tv_nsec;
	CHECK(a <= b && b <= c, "clock %d: vDSO %ld, kernel %ld, vDSO %ld", clock, a, b, c);
}

int main(void)
{
	unsigned long address = getauxval(AT_SYSINFO_EHDR);
	bool fast = clock_works_without_kernel();

	if (!address)
		harness_skip("this kernel has no vDSO");
	harness_ready();
	while (harness_wait_check()) {
		CHECK(getauxval(AT_SYSINFO_EHDR) == address);
		CHECK(!memcmp((void *)address, ELFMAG, SELFMAG));
		check_clock(CLOCK_MONOTONIC);
		check_clock(CLOCK_REALTIME);
		check_clock(CLOCK_BOOTTIME);
		CHECK(clock_works_without_kernel() == fast);
		CHECK(time(NULL) >= 1600000000);
		harness_report();
	}
	return 0;
}
