/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that notices at once when somebody touches it: its threads keep checking their registers, their memory,
 * their signals, interrupted system calls and a TCP connection; so do those of a child process. A check asks that all
 * of them have come further since the last one and found nothing.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 256UL

struct watcher {
	const char *name;
	void (*round)(struct watcher *watcher);
	pthread_t thread;
	atomic_ullong rounds;
	int fds[2];
	uint64_t *memory;
	uint64_t seed;
};

/* Eight general and four vector registers keep their values over some milliseconds in user space. */
static void watch_registers(struct watcher *watcher)
{
	uint64_t bad = 0;
	long left = 2000000;

	__asm__ volatile("mov $0x1111111111111111, %%rax\n mov $0x2222222222222222, %%rbx\n"
			 "mov $0x3333333333333333, %%rdx\n mov $0x4444444444444444, %%rsi\n"
			 "mov $0x5555555555555555, %%rdi\n mov $0x6666666666666666, %%r8\n"
			 "mov $0x7777777777777777, %%r11\n mov $0x1234567890abcdef, %%r15\n"
			 "movq %%rax, %%xmm0\n movq %%rbx, %%xmm7\n movq %%rdx, %%xmm8\n movq %%r15, %%xmm15\n"
			 "1: dec %[left]\n jnz 1b\n"
			 "xor %%r9, %%r9\n"
			 "movq %%xmm0, %%r10\n xor %%rax, %%r10\n or %%r10, %%r9\n"
			 "movq %%xmm7, %%r10\n xor %%rbx, %%r10\n or %%r10, %%r9\n"
			 "movq %%xmm8, %%r10\n xor %%rdx, %%r10\n or %%r10, %%r9\n"
			 "movq %%xmm15, %%r10\n xor %%r15, %%r10\n or %%r10, %%r9\n"
			 "mov $0x4444444444444444, %%r10\n xor %%rsi, %%r10\n or %%r10, %%r9\n"
			 "mov $0x5555555555555555, %%r10\n xor %%rdi, %%r10\n or %%r10, %%r9\n"
			 "mov $0x6666666666666666, %%r10\n xor %%r8, %%r10\n or %%r10, %%r9\n"
			 "mov $0x7777777777777777, %%r10\n xor %%r11, %%r10\n or %%r10, %%r9\n"
			 "mov $0x1111111111111111, %%r10\n xor %%rax, %%r10\n or %%r10, %%r9\n"
			 "mov %%r9, %[bad]\n"
			 : [left] "+c"(left), [bad] "=m"(bad)
			 :
			 : "rax", "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r15", "xmm0", "xmm7", "xmm8",
			   "xmm15", "cc", "memory");
	CHECK(bad == 0, "registers: bits %lx", bad);
}

static uint64_t word(struct watcher *watcher, size_t i)
{
	return (watcher->seed + i) * 0x9e3779b97f4a7c15ULL;
}

/* Every word is as it was written, then all are written anew. */
static void watch_memory(struct watcher *watcher)
{
	size_t words = PAGES * PAGE / sizeof(uint64_t);

	for (size_t i = 0; i < words; i++)
		if (watcher->memory[i] != word(watcher, i)) {
			CHECK(false, "memory word %zu is %lx", i, watcher->memory[i]);
			break;
		}
	watcher->seed++;
	for (size_t i = 0; i < words; i++)
		watcher->memory[i] = word(watcher, i);
}

/* Queued signals come all, in order, with their values. */
static void watch_signals(struct watcher *watcher)
{
	sigset_t set;
	siginfo_t information;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	for (int i = 0; i < 10; i++) {
		siginfo_t queued = {.si_signo = SIGRTMIN + 3, .si_code = SI_QUEUE};
		queued.si_pid = getpid();
		queued.si_value.sival_int = watcher->seed + i;
		CHECK(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGRTMIN + 3, &queued) == 0, "%m");
	}
	for (int i = 0; i < 10; i++) {
		int got;
		do {
			got = sigwaitinfo(&set, &information);
		} while (got < 0 && errno == EINTR);
		CHECK(got == SIGRTMIN + 3 && information.si_value.sival_int == (int)(watcher->seed + i),
		      "signal %d value %d", got, information.si_value.sival_int);
	}
	watcher->seed += 10;
}

static void watch_sleep(struct watcher *watcher)
{
	int64_t start = harness_clock_ns(CLOCK_MONOTONIC);
	struct timespec time = {.tv_nsec = 20000000};
	int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);

	CHECK(error == 0, "nanosleep: %s", strerror(error));
	CHECK(harness_clock_ns(CLOCK_MONOTONIC) - start >= 20000000, "woken too early");
}

static void watch_read(struct watcher *watcher)
{
	uint64_t value = watcher->seed++, back = 0;

	CHECK(write(watcher->fds[1], &value, sizeof(value)) == sizeof(value), "write: %m");
	CHECK(read(watcher->fds[0], &back, sizeof(back)) == sizeof(back), "read: %m");
	CHECK(back == value, "%lx instead of %lx", back, value);
}

/* The other end of a pair: sends back what comes, and is blocked in read most of the time. */
static void *send_back(void *argument)
{
	struct watcher *watcher = argument;
	uint64_t value;

	for (;;) {
		ssize_t got = read(watcher->fds[1], &value, sizeof(value));
		CHECK(got == sizeof(value), "echo: read %zd: %m", got);
		if (got != sizeof(value))
			return NULL;
		CHECK(write(watcher->fds[1], &value, sizeof(value)) == sizeof(value), "echo: %m");
	}
}

static void watch_echo(struct watcher *watcher)
{
	uint64_t value = watcher->seed++, back = 0;

	CHECK(write(watcher->fds[0], &value, sizeof(value)) == sizeof(value), "echo: write: %m");
	CHECK(recv(watcher->fds[0], &back, sizeof(back), MSG_WAITALL) == sizeof(back), "echo: recv: %m");
	CHECK(back == value, "echo: %lx instead of %lx", back, value);
}

/* A timer's handler interrupts this loop all the time. */
static atomic_ullong alarms;

static void on_alarm(int signal)
{
	atomic_fetch_add(&alarms, 1);
}

static void watch_alarms(struct watcher *watcher)
{
	uint64_t before = atomic_load(&alarms);

	while (atomic_load(&alarms) < before + 3)
		;
}

static void *watcher_main(void *argument)
{
	struct watcher *watcher = argument;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	if (watcher->round != watch_alarms)
		sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	for (;;) {
		watcher->round(watcher);
		atomic_fetch_add(&watcher->rounds, 1);
		/* Two processes with all these threads share two cpus with the tool that is tested. */
		if (watcher->round != watch_sleep)
			usleep(500);
	}
	return NULL;
}

static struct watcher watchers[] = {
	{.name = "registers", .round = watch_registers}, {.name = "memory", .round = watch_memory},
	{.name = "signals", .round = watch_signals},     {.name = "sleep", .round = watch_sleep},
	{.name = "pipe", .round = watch_read},           {.name = "tcp", .round = watch_echo},
	{.name = "unix", .round = watch_echo},           {.name = "alarms", .round = watch_alarms},
};
#define WATCHERS (sizeof(watchers) / sizeof(watchers[0]))

static void connect_tcp(int fds[2])
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));

	MUST(bind(listener, (struct sockaddr *)&address, sizeof(address)));
	MUST(listen(listener, 1));
	MUST(getsockname(listener, (struct sockaddr *)&address, &length));
	fds[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(fds[0], (struct sockaddr *)&address, sizeof(address)));
	fds[1] = MUST(accept(listener, NULL, NULL));
	MUST(close(listener));
}

static void start_watchers(void)
{
	struct itimerval interval = {{.tv_usec = 2000}, {.tv_usec = 2000}};
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	pthread_t echo;

	MUST(sigaction(SIGALRM, &action, NULL));
	for (size_t i = 0; i < WATCHERS; i++) {
		struct watcher *watcher = &watchers[i];
		if (watcher->round == watch_memory) {
			watcher->memory = MUST((uint64_t *)mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
								MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
			for (size_t k = 0; k < PAGES * PAGE / sizeof(uint64_t); k++)
				watcher->memory[k] = word(watcher, k);
		}
		if (watcher->round == watch_read)
			MUST(pipe(watcher->fds));
		if (!strcmp(watcher->name, "tcp"))
			connect_tcp(watcher->fds);
		if (!strcmp(watcher->name, "unix"))
			MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, watcher->fds));
		if (watcher->round == watch_echo)
			MUST_ZERO(pthread_create(&echo, NULL, send_back, watcher));
		MUST_ZERO(pthread_create(&watcher->thread, NULL, watcher_main, watcher));
	}
	MUST(setitimer(ITIMER_REAL, &interval, NULL));
}

static void check_watchers(void *argument)
{
	static bool started;

	if (!started) {
		sigset_t alarm;
		sigemptyset(&alarm);
		sigaddset(&alarm, SIGALRM);
		/* The main thread is in the harness's read. */
		pthread_sigmask(SIG_BLOCK, &alarm, NULL);
		start_watchers();
		started = true;
	}
	for (size_t i = 0; i < WATCHERS; i++) {
		uint64_t before = atomic_load(&watchers[i].rounds);
		/* The echo threads end on a failure, then their watcher stands still: the runner's limit ends the wait.
		 */
		while (atomic_load(&watchers[i].rounds) < before + 2)
			usleep(200);
	}
}

int main(void)
{
	harness_start_child(check_watchers, NULL);
	harness_check_children();
	check_watchers(NULL);
	harness_ready();
	while (harness_wait_check()) {
		check_watchers(NULL);
		harness_check_children();
		harness_report();
	}
	return 0;
}
