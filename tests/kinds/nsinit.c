/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small host for tests: first process of new namespaces (--pid, --mount, --terminals, --net, or --net-of=PID to share
 *one), or without options a child subreaper in the caller's own. It adopts and collects every orphan, and starts what
 *the runner asks for.
 *
 * Requests on standard input, each ended by a NUL byte: "TAG COMMAND", run by sh -c. Answers are lines on standard
 *output: host PID                  once, at the start: our pid as the caller sees it started TAG PID           PID as
 *we see it exit TAG STATUS           a started command ended; STATUS as waitpid() gave it collected PID STATUS      an
 *orphan ended At the end of standard input every process below us is killed (with --pid by the kernel).
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_COMMANDS 256
#define LINE_BYTES 65536

struct command {
	pid_t pid; /* 0 = free */
	char tag[32];
};

struct host {
	struct command commands[MAX_COMMANDS];
	char line[LINE_BYTES];
	size_t length;
	int signals;
};

static void die(const char *what)
{
	fprintf(stderr, "nsinit: %s: %m\n", what);
	exit(1);
}

static void bring_up_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		die("lo");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		die("lo");
	close(fd);
}

static void start_command(struct host *host, char *line)
{
	struct command *command = host->commands;
	char *space = strchr(line, ' ');

	while (command->pid != 0 && command < host->commands + MAX_COMMANDS - 1)
		command++;
	if (!space || command->pid != 0) {
		errno = EINVAL;
		die("request");
	}
	*space = '\0';
	snprintf(command->tag, sizeof(command->tag), "%s", line);
	command->pid = fork();
	if (command->pid < 0)
		die("fork");
	if (command->pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execl("/bin/sh", "sh", "-c", space + 1, NULL);
		die("/bin/sh");
	}
	printf("started %s %d\n", command->tag, command->pid);
}

static void collect(struct host *host)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct command *command = NULL;
		for (size_t i = 0; i < MAX_COMMANDS; i++)
			if (host->commands[i].pid == pid)
				command = &host->commands[i];
		if (command) {
			printf("exit %s %d\n", command->tag, status);
			command->pid = 0;
		} else {
			printf("collected %d %d\n", pid, status);
		}
	}
}

static bool take_requests(struct host *host)
{
	ssize_t got = read(0, host->line + host->length, sizeof(host->line) - host->length);
	char *end;

	if (got <= 0)
		return false;
	host->length += got;
	while ((end = memchr(host->line, '\0', host->length)) != NULL) {
		start_command(host, host->line);
		host->length -= end + 1 - host->line;
		memmove(host->line, end + 1, host->length);
	}
	return true;
}

static void serve(void)
{
	static struct host host;
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	host.signals = signalfd(-1, &child, SFD_CLOEXEC);
	struct pollfd polls[] = {{.fd = 0, .events = POLLIN}, {.fd = host.signals, .events = POLLIN}};
	for (;;) {
		fflush(stdout);
		if (poll(polls, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (polls[1].revents) {
			struct signalfd_siginfo information;
			if (read(host.signals, &information, sizeof(information)) < 0)
				die("signalfd");
			collect(&host);
		}
		if (polls[0].revents && !take_requests(&host))
			return;
	}
}

/* Without a pid namespace nobody ends our descendants for us: those that we started, and then those that become ours.
 */
static void kill_descendants(void)
{
	char path[64];
	pid_t pid;
	int status;

	do {
		snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
		FILE *children = fopen(path, "re");
		while (children && fscanf(children, "%d", &pid) == 1)
			kill(pid, SIGKILL);
		if (children)
			fclose(children);
	} while (waitpid(-1, &status, 0) > 0);
}

static void join_network(const char *pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%s/ns/net", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
		die(path);
	close(fd);
}

/* /dev/pts of its own, as every real host has: numbers of terminals are then the same after a restore. */
static void new_terminals(void)
{
	if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620") < 0)
		die("/dev/pts");
	if (mount("/dev/pts/ptmx", "/dev/ptmx", NULL, MS_BIND, NULL) < 0)
		die("/dev/ptmx");
}

static void become_first_process(bool with_mounts, bool with_terminals)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (with_terminals)
		new_terminals();
	if (with_mounts && mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		die("/proc");
}

int main(int argc, char **argv)
{
	int flags = 0, status = 0;
	bool terminals = false;

	for (int i = 1; i < argc; i++) {
		flags |= !strcmp(argv[i], "--pid") ? CLONE_NEWPID : 0;
		flags |= !strcmp(argv[i], "--mount") ? CLONE_NEWNS : 0;
		terminals |= !strcmp(argv[i], "--terminals");
		flags |= !strcmp(argv[i], "--net") ? CLONE_NEWNET : 0;
		if (!strncmp(argv[i], "--net-of=", 9))
			join_network(argv[i] + 9);
	}
	if (unshare(flags) < 0)
		die("unshare");
	if ((flags & CLONE_NEWNS) && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		die("private mounts");
	if (flags & CLONE_NEWNET)
		bring_up_loopback();
	if (flags & CLONE_NEWPID) {
		pid_t first = fork();
		if (first < 0)
			die("fork");
		if (first > 0) {
			printf("host %d\n", first);
			fflush(stdout);
			close(0);
			waitpid(first, &status, 0);
			return 0;
		}
		become_first_process(flags & CLONE_NEWNS, terminals);
	} else {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		printf("host %d\n", getpid());
		fflush(stdout);
	}
	serve();
	if (!(flags & CLONE_NEWPID))
		kill_descendants();
	return 0;
}
