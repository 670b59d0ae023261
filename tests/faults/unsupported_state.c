/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program in a state that cannot be checkpointed; its first argument says which. It prints "ready" when it is in it,
 * or "lacking" if this kernel has no such thing, and waits.
 */
#include <asm/ldt.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/mempolicy.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

enum { PAGE_BYTES = 4096, ORDINARY_USER = 12345, ORDINARY_GROUP = 12346 };

static sem_t done;
static char selector;

static void leave(int what)
{
	if (unshare(what) < 0) {
		perror("unshare");
		exit(1);
	}
}

static int wait_for_end(void *argument)
{
	for (;;)
		pause();
	return 0;
}

static void *wait_in_thread(void *argument)
{
	wait_for_end(argument);
	return NULL;
}

/* As many more threads as the environment says, that only wait. */
static void make_more_threads(void)
{
	const char *count = getenv("MORE_THREADS");
	pthread_t thread;

	for (int i = count ? atoi(count) : 0; i > 0; i--)
		if (pthread_create(&thread, NULL, wait_in_thread, NULL))
			exit(1);
}

static void say(const char *word)
{
	puts(word);
	fflush(stdout);
}

/* A child that shares something with us. */
static void share(int what)
{
	enum { STACK_BYTES = 16 * 1024 };
	char *stack = malloc(STACK_BYTES);

	if (clone(wait_for_end, stack + STACK_BYTES, what | SIGCHLD, NULL) < 0) {
		perror("clone");
		exit(1);
	}
}

/* A kernel may be built or booted without. */
static void must(long result, const char *what)
{
	if (result < 0 && (errno == ENOSYS || errno == EOPNOTSUPP || errno == EAFNOSUPPORT)) {
		say("lacking");
		for (;;)
			pause();
	}
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

/* One that only forbids to run programs. */
static void enter_landlock_domain(void)
{
	const struct landlock_ruleset_attr rules = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
	long fd = syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules.handled_access_fs), 0);

	must(fd, "landlock_create_ruleset");
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	must(syscall(SYS_landlock_restrict_self, fd, 0), "landlock_restrict_self");
	close((int)fd);
}

/* The ids of the whole process, as the library changes them. */
static void enter_landlock_domain_as_user(void)
{
	must(setresgid(ORDINARY_GROUP, ORDINARY_GROUP, ORDINARY_GROUP), "setresgid");
	must(setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER), "setresuid");
	enter_landlock_domain();
}

static void make_keyring(int which)
{
	must(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, which, 1), "keyctl");
}

static void make_mapping_policy(int policy)
{
	unsigned long nodes = policy == MPOL_LOCAL ? 0 : 1;
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(syscall(SYS_mbind, page, PAGE_BYTES, policy, &nodes, 65, 0), "mbind");
}

/* From the set that the test has made, whose id it has put into the environment. */
static void take_semaphore(short flags)
{
	struct sembuf up = {.sem_op = 1, .sem_flg = flags};

	must(semop(atoi(getenv("SEMAPHORES")), &up, 1), "semop");
}

static void make_segment(void)
{
	const struct user_desc segment = {.limit = 1, .seg_32bit = 1, .useable = 1};

	must(syscall(SYS_modify_ldt, 1, &segment, sizeof(segment)), "modify_ldt");
}

/* A mount that is in no directory. */
static void open_detached_mount(void)
{
	must(syscall(SYS_open_tree, AT_FDCWD, "/tmp", OPEN_TREE_CLONE), "open_tree");
}

static void open_file_in_detached_mount(void)
{
	int mount = (int)syscall(SYS_open_tree, AT_FDCWD, "/tmp", OPEN_TREE_CLONE);

	must(mount, "open_tree");
	must(openat(mount, ".", O_RDONLY | O_DIRECTORY), "openat");
	close(mount);
}

static void make_secret_memory(bool keep_descriptor)
{
	int fd = (int)syscall(SYS_memfd_secret, 0);

	must(fd, "memfd_secret");
	must(ftruncate(fd, PAGE_BYTES), "ftruncate");
	if (keep_descriptor)
		return;
	char *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	page[0] = 1;
	close(fd);
}

static void make_io_uring(void)
{
	struct io_uring_params parameters = {};

	must(syscall(SYS_io_uring_setup, 4, &parameters), "io_uring_setup");
}

/* Never called: the breakpoint is only there. */
static __attribute__((noinline, used)) int traced_function(int value)
{
	return value + 1;
}

/* Where the kernel finds a function in this program's file. */
static unsigned long offset_in_file(const void *function)
{
	FILE *file = fopen("/proc/self/maps", "r");
	unsigned long start, end, offset, result = 0;
	char line[4096], rights[5];

	while (file && !result && fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx-%lx %4s %lx", &start, &end, rights, &offset) == 4 &&
		    start <= (unsigned long)function && (unsigned long)function < end)
			result = offset + (unsigned long)function - start;
	if (file)
		fclose(file);
	return result;
}

static int uprobe_type(void)
{
	FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
	int type;

	if (!file || fscanf(file, "%d", &type) != 1)
		type = -1;
	if (file)
		fclose(file);
	return type;
}

/* Somebody else traces this program's file: a process that is not in the tree. */
static void be_traced(void)
{
	char path[4096] = "";
	struct perf_event_attr event = {.size = sizeof(event), .config2 = offset_in_file(traced_function)};
	int type = uprobe_type(), tracing[2];
	char byte;

	errno = type < 0 ? ENOSYS : errno;
	must(type, "uprobe");
	must(readlink("/proc/self/exe", path, sizeof(path) - 1), "readlink");
	must(pipe(tracing), "pipe");
	event.type = (unsigned)type;
	event.config1 = (unsigned long)path;
	if (!fork()) {
		if (fork())
			_exit(0);
		setsid();
		must(syscall(SYS_perf_event_open, &event, -1, 0, -1, 0), "perf_event_open");
		must(write(tracing[1], "x", 1), "write");
		close(tracing[0]);
		close(tracing[1]);
		for (;;)
			pause();
	}
	while (wait(NULL) < 0)
		;
	must(read(tracing[0], &byte, 1), "read");
	close(tracing[0]);
	close(tracing[1]);
}

static bool make_descriptor(const char *name)
{
	if (!strcmp(name, "detached-mount"))
		open_detached_mount();
	else if (!strcmp(name, "file-in-detached-mount"))
		open_file_in_detached_mount();
	else if (!strcmp(name, "file-system-context"))
		must(syscall(SYS_fsopen, "tmpfs", 0), "fsopen");
	else if (!strcmp(name, "packet-socket"))
		must(socket(AF_PACKET, SOCK_RAW, 0), "socket");
	else if (!strcmp(name, "machine-socket"))
		must(socket(AF_VSOCK, SOCK_STREAM, 0), "socket");
	else if (!strcmp(name, "secret-memory"))
		make_secret_memory(true);
	else if (!strcmp(name, "secret-mapping"))
		make_secret_memory(false);
	else if (!strcmp(name, "io-uring"))
		make_io_uring();
	else if (!strcmp(name, "userfaultfd")) /* whose features were not asked for yet */
		must(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY), "userfaultfd");
	else if (!strcmp(name, "network-namespace"))
		must(open("/proc/self/ns/net", O_RDONLY), "open");
	else
		return false;
	return true;
}

static void make_state(const char *name)
{
	if (!strcmp(name, "thread-files"))
		leave(CLONE_FILES);
	else if (!strcmp(name, "thread-directory"))
		leave(CLONE_FS);
	else if (!strcmp(name, "thread-network"))
		leave(CLONE_NEWNET);
	else if (!strcmp(name, "thread-host-name"))
		leave(CLONE_NEWUTS);
	else if (!strcmp(name, "shared-memory"))
		share(CLONE_VM);
	else if (!strcmp(name, "shared-files"))
		share(CLONE_FILES);
	else if (!strcmp(name, "shared-directory"))
		share(CLONE_FS);
	else if (!strcmp(name, "thread-dispatch"))
		prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0x1000, 0x1000, &selector);
	else if (!strcmp(name, "landlock"))
		enter_landlock_domain();
	else if (!strcmp(name, "landlock-user"))
		enter_landlock_domain_as_user();
	else if (!strcmp(name, "process-keyring"))
		make_keyring(KEY_SPEC_PROCESS_KEYRING);
	else if (!strcmp(name, "thread-keyring"))
		make_keyring(KEY_SPEC_THREAD_KEYRING);
	else if (!strcmp(name, "mapping-policy"))
		make_mapping_policy(MPOL_BIND);
	else if (!strcmp(name, "mapping-policy-local"))
		make_mapping_policy(MPOL_LOCAL);
	else if (!strcmp(name, "traced"))
		be_traced();
	else if (!strcmp(name, "semaphore-undo"))
		take_semaphore(SEM_UNDO);
	else if (!strcmp(name, "semaphore")) /* this one can be dumped, … */
		take_semaphore(0);
	else if (!strcmp(name, "plain")) /* … and so can this */
		return;
	else if (!strcmp(name, "segments"))
		make_segment();
	else if (!make_descriptor(name))
		exit(2);
}

static void *run(void *argument)
{
	timer_t timer;

	/* Two threads of which one is measured: nobody can tell which. */
	if (!strcmp(argument, "thread-clock"))
		timer_create(CLOCK_THREAD_CPUTIME_ID, NULL, &timer);
	else
		make_state(argument);
	sem_post(&done);
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	sem_init(&done, 0, 0);
	if (argc != 2 || pthread_create(&thread, NULL, run, argv[1]))
		return 2;
	while (sem_wait(&done) < 0)
		;
	make_more_threads();
	say("ready");
	for (;;)
		pause();
}
