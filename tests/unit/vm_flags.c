/* SPDX-License-Identifier: Apache-2.0 */
/* What the BPF program says of mappings is what smaps says. */
#include "kernel/vm_flags.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "kernel/kernel_types.h"
#include "kernel/proc.h"
#include "unit.h"

enum { PAGE_BYTES = 4096, RANDOM_MAPPINGS = 400 };

#define READ_WRITE (PROT_READ | PROT_WRITE)

static char *map(int protection, int flags, int fd)
{
	char *page = mmap(NULL, 3 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mmap(page + PAGE_BYTES, PAGE_BYTES, protection, flags | MAP_FIXED, fd, 0);
}

static void watch(uint64_t mode)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
	char *page = map(READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct uffdio_register range = {.range = {(uint64_t)page, PAGE_BYTES}, .mode = mode};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	ioctl(fd, UFFDIO_API, &api);
	ioctl(fd, UFFDIO_REGISTER, &range);
}

static void make_ordinary(void)
{
	static const int advices[] = {MADV_RANDOM,   MADV_SEQUENTIAL, MADV_DONTFORK, MADV_MERGEABLE,
				      MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, 18 /* WIPEONFORK */};
	static const int protections[] = {PROT_NONE, PROT_READ, READ_WRITE, READ_WRITE | PROT_EXEC};

	/* Everything with everything. */
	srandom(1);
	for (int i = 0; i < RANDOM_MAPPINGS; i++) {
		long dice = random();
		char *page = map(protections[dice & 3],
				 MAP_PRIVATE | MAP_ANONYMOUS | (dice & 4 ? MAP_NORESERVE : 0) |
					 (dice & 8 ? MAP_GROWSDOWN : 0),
				 -1);
		for (size_t a = 0; a < ARRAY_SIZE(advices); a++)
			if (dice >> (8 + a) & 1)
				madvise(page, PAGE_BYTES, advices[a]);
		if (dice & 1 << 20)
			mlock2(page, PAGE_BYTES, dice & 1 << 21 ? MLOCK_ONFAULT : 0);
	}
	int exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int memfd = memfd_create("vm_flags", MFD_CLOEXEC);
	ftruncate(memfd, PAGE_BYTES);
	map(PROT_READ, MAP_SHARED, exe);
	map(PROT_READ, MAP_PRIVATE, exe);
	map(PROT_READ, MAP_SHARED, memfd);
	map(READ_WRITE, MAP_SHARED, memfd);
	watch(UFFDIO_REGISTER_MODE_WP);
	watch(UFFDIO_REGISTER_MODE_MISSING);
}

/* What criu has no sample of. */
static void make_strange(void)
{
	syscall(462 /* mseal */, map(PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1), PAGE_BYTES, 0);
	map(READ_WRITE, 0x08 /* MAP_DROPPABLE */ | MAP_ANONYMOUS, -1);
}

static pid_t start(bool strange)
{
	int pair[2];
	char byte;

	pipe(pair);
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		make_ordinary();
		if (strange)
			make_strange();
		write(pair[1], "", 1);
		for (;;)
			pause();
	}
	assert_int_equal(read(pair[0], &byte, 1), 1);
	close(pair[0]);
	close(pair[1]);
	return pid;
}

static void compare(struct vm_flags_reader *reader, pid_t pid)
{
	struct mappings left = {}, right = {};
	int proc_dirfd = proc_open(pid);

	assert_int_equal(vm_flags_mappings_read(reader, pid, proc_dirfd, true, &left), 0);
	assert_int_equal(mappings_read(proc_dirfd, &right), 0);
	assert_int_equal(left.count, right.count);
	for (size_t i = 0; i < left.count; i++) {
		assert_int_equal(left.items[i].start, right.items[i].start);
		assert_int_equal(left.items[i].end, right.items[i].end);
		assert_int_equal(left.items[i].flags, right.items[i].flags);
		assert_int_equal(left.items[i].advice, right.items[i].advice);
		assert_string_equal(left.items[i].name, right.items[i].name);
	}
	mappings_free(&left);
	mappings_free(&right);
	close(proc_dirfd);
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static struct vm_flags_reader *open_reader(void)
{
	struct kernel_types *types = kernel_types_read();
	struct vm_flags_reader *reader = vm_flags_open(types);

	kernel_types_free(types);
	return reader;
}

static void test_same_as_smaps(void **state)
{
	struct vm_flags_reader *reader = open_reader();

	if (!reader)
		skip(); /* not on this kernel, or not for this user */
	pid_t pid = start(false);
	compare(reader, pid);
	/* And without smaps. */
	assert_int_equal(vm_flags_fallbacks(reader), 0);
	end(pid);
	vm_flags_close(reader);
}

static void test_what_is_not_known_is_learnt(void **state)
{
	struct vm_flags_reader *reader = open_reader();

	if (!reader)
		skip();
	pid_t pid = start(true);
	compare(reader, pid);
	assert_int_equal(vm_flags_fallbacks(reader), 1);
	compare(reader, pid);
	assert_int_equal(vm_flags_fallbacks(reader), 1);
	end(pid);
	vm_flags_close(reader);
}

static void test_without_a_reader(void **state)
{
	pid_t pid = start(true);

	compare(NULL, pid);
	end(pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_as_smaps),
		cmocka_unit_test(test_what_is_not_known_is_learnt),
		cmocka_unit_test(test_without_a_reader),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
