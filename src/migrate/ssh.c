/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ssh is a child with one socket as its standard input and output. Its standard error is read by a thread, which shows
 * each line with the host before it and keeps the last one: it says best why there is no connection.
 *
 * Ctrl-C in the terminal goes to ssh too, which would cut the link in the middle of a cancellation: ssh ignores SIGINT
 * if it was started so.
 */
#include "migrate/ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "migrate/stream.h"

enum {
	MAX_WORDS = 64,
	LINE_BYTES = 1024,
	END_WAIT_MS = 2000,
	JOINED_END_WAIT_MS = 200,
	DEATH_WAIT_MS = 2000,
	CANNOT_CONNECT = 255,
	NO_COMMAND = 127
};

struct ssh {
	pid_t pid;
	int pidfd, stderr_fd, stop_fd;
	char host[256];
	pthread_t thread;
	bool has_thread, ended, joined;
	int status; /* of waitpid, once ended */
	pthread_mutex_t lock;
	char last_line[160];
	char death[400];
};

/* ---- standard error of the other side ---- */

static void show_line(struct ssh *ssh, char *line)
{
	/* What another machine says must not move the cursor of this terminal. */
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = ' ';
	if (!*line)
		return;
	fprintf(stderr, "%s: %s\n", ssh->host, line);
	pthread_mutex_lock(&ssh->lock);
	snprintf(ssh->last_line, sizeof(ssh->last_line), "%s", line);
	pthread_mutex_unlock(&ssh->lock);
}

/* Shows the lines of what has been read; what is left is the beginning of the next one. */
static size_t show_lines(struct ssh *ssh, char *text, size_t length)
{
	char *end;

	text[length] = 0;
	while ((end = strpbrk(text, "\r\n")) || length >= LINE_BYTES - 1) {
		size_t used = end ? (size_t)(end - text) + 1 : length;

		if (end)
			*end = 0;
		show_line(ssh, text);
		length -= used;
		memmove(text, text + used, length + 1);
	}
	return length;
}

/* Until the pipe ends, or ssh has ended: others may hold the pipe (a shared connection). */
static void *show_errors(void *argument)
{
	struct ssh *ssh = argument;
	char text[LINE_BYTES];
	size_t length = 0;

	for (;;) {
		struct pollfd waits[2] = {{.fd = ssh->stderr_fd, .events = POLLIN},
					  {.fd = ssh->stop_fd, .events = POLLIN}};

		if (poll(waits, 2, -1) < 0 && errno != EINTR)
			break;
		if (!waits[0].revents && waits[1].revents)
			break;
		if (!waits[0].revents)
			continue;
		ssize_t count = read(ssh->stderr_fd, text + length, sizeof(text) - 1 - length);
		if (count <= 0)
			break;
		length = show_lines(ssh, text, length + (size_t)count);
	}
	text[length] = 0;
	show_line(ssh, text);
	return NULL;
}

static void end_thread(struct ssh *ssh)
{
	const uint64_t one = 1;

	if (!ssh->has_thread)
		return;
	write_full(ssh->stop_fd, &one, sizeof(one));
	pthread_join(ssh->thread, NULL);
	ssh->has_thread = false;
}

/* ---- the end ---- */

/* Waits for the child. Returns whether it has ended. */
static bool has_ended(struct ssh *ssh, int timeout_ms)
{
	struct pollfd wait = {.fd = ssh->pidfd, .events = POLLIN};

	if (!ssh->ended && poll(&wait, 1, timeout_ms) > 0 && waitpid(ssh->pid, &ssh->status, WNOHANG) == ssh->pid)
		ssh->ended = true;
	return ssh->ended;
}

static const char *ssh_death(struct stream *stream)
{
	struct ssh *ssh = stream->data;

	if (!has_ended(ssh, DEATH_WAIT_MS))
		return NULL;
	end_thread(ssh);
	int status = WIFEXITED(ssh->status) ? WEXITSTATUS(ssh->status) : 128 + WTERMSIG(ssh->status);
	if (status == CANNOT_CONNECT)
		snprintf(ssh->death, sizeof(ssh->death), "ssh has lost or cannot make the connection: %s",
			 ssh->last_line);
	else if (status == NO_COMMAND)
		snprintf(ssh->death, sizeof(ssh->death),
			 "criu was not found there (%s); install it or name it with --remote-criu", ssh->last_line);
	else
		snprintf(ssh->death, sizeof(ssh->death), "`criu receive` there has ended with status %d: %s", status,
			 ssh->last_line);
	return ssh->death;
}

static void ssh_free(struct stream *stream)
{
	struct ssh *ssh = stream->data;

	/* The last message may still be on its way through ssh; what carries pages has nothing left to say. */
	if (!has_ended(ssh, ssh->joined ? JOINED_END_WAIT_MS : END_WAIT_MS)) {
		kill(ssh->pid, SIGTERM);
		waitpid(ssh->pid, &ssh->status, 0);
	}
	end_thread(ssh);
	close(ssh->stderr_fd);
	if (ssh->stop_fd >= 0)
		close(ssh->stop_fd);
	if (ssh->pidfd >= 0)
		close(ssh->pidfd);
	pthread_mutex_destroy(&ssh->lock);
	free(ssh);
}

/* The socket is one like any other. */
static ssize_t ssh_read(struct stream *stream, void *buffer, size_t size)
{
	return stream_fd_operations.read(stream, buffer, size);
}

static ssize_t ssh_writev(struct stream *stream, const struct iovec *parts, int count)
{
	return stream_fd_operations.writev(stream, parts, count);
}

static const struct stream_operations ssh_operations = {
	.name = "ssh",
	.read = ssh_read,
	.writev = ssh_writev,
	.death = ssh_death,
	.free = ssh_free,
};

/* ---- the start ---- */

struct words {
	char *items[MAX_WORDS];
	size_t count;
};

static void add_word(struct words *words, const char *word)
{
	if (words->count < MAX_WORDS - 1)
		words->items[words->count++] = xstrdup(word);
}

/* The command goes through a shell on the other side. */
static void add_quoted(struct words *words, const char *word)
{
	_cleanup_free_ char *quoted = xcalloc(4 * strlen(word) + 3, 1);
	char *out = quoted;

	*out++ = '\'';
	for (; *word; word++) {
		if (*word == '\'')
			out = stpcpy(out, "'\\''");
		else
			*out++ = *word;
	}
	*out = '\'';
	add_word(words, quoted);
}

static void free_words(struct words *words)
{
	for (size_t i = 0; i < words->count; i++)
		free(words->items[i]);
}

static void make_command(struct words *words, const struct endpoint *endpoint, const struct ssh_options *options,
			 const char *join)
{
	static const char *const always[] = {
		"-T", "-x", "-a", "-o", "ServerAliveInterval=4", "-o", "ServerAliveCountMax=3"};
	char text[400];

	add_word(words, options->program ?: "ssh");
	for (size_t i = 0; i < ARRAY_SIZE(always); i++)
		add_word(words, always[i]);
	if (!isatty(STDIN_FILENO)) {
		add_word(words, "-o");
		add_word(words, "BatchMode=yes");
	}
	if (endpoint->port) {
		snprintf(text, sizeof(text), "%u", endpoint->port);
		add_word(words, "-p");
		add_word(words, text);
	}
	snprintf(text, sizeof(text), "%s%s%s", endpoint->user, endpoint->user[0] ? "@" : "", endpoint->host);
	add_word(words, "--");
	add_word(words, text);
	/* The user's own words: may be `sudo criu`. */
	add_word(words, options->remote_criu ?: "criu");
	add_word(words, "receive");
	add_word(words, join ? "--join" : "--stdio");
	if (join)
		add_word(words, join);
	for (const char *const *argument = options->arguments; !join && argument && *argument; argument++)
		add_quoted(words, *argument);
}

static void __attribute__((noreturn)) run_ssh(char **words, int stream_fd, int error_fd)
{
	sigset_t none;

	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(stream_fd, STDIN_FILENO);
	dup2(stream_fd, STDOUT_FILENO);
	dup2(error_fd, STDERR_FILENO);
	execvp(words[0], words);
	dprintf(STDERR_FILENO, "%s: %s\n", words[0], strerror(errno));
	_exit(CANNOT_CONNECT);
}

/* Starts the child with its descriptors. Returns 0 or -errno; @ret_fd: this side of the stream. */
static int start_child(struct ssh *ssh, char **words, int *ret_fd)
{
	int sockets[2], errors[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
		return -errno;
	_cleanup_fd_ int own_fd = sockets[0], child_fd = sockets[1];
	if (pipe2(errors, O_CLOEXEC) < 0)
		return -errno;
	_cleanup_fd_ int own_errors = errors[0], child_errors = errors[1];
	ssh->pid = fork();
	if (ssh->pid < 0)
		return -errno;
	if (!ssh->pid)
		run_ssh(words, child_fd, child_errors);
	ssh->pidfd = (int)syscall(SYS_pidfd_open, ssh->pid, 0);
	ssh->stderr_fd = TAKE_FD(own_errors);
	ssh->stop_fd = eventfd(0, EFD_CLOEXEC);
	*ret_fd = TAKE_FD(own_fd);
	return 0;
}

static void start_thread(struct ssh *ssh)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ssh->has_thread = pthread_create(&ssh->thread, NULL, show_errors, ssh) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

int ssh_open(const struct endpoint *endpoint, const struct ssh_options *options, const char *join,
	     struct failure *failure, struct stream **ret_stream)
{
	__attribute__((cleanup(free_words))) struct words words = {};
	struct ssh *ssh = xcalloc(1, sizeof(*ssh));
	char peer[360], text[340];
	int fd;

	snprintf(peer, sizeof(peer), "%s", endpoint_text(endpoint, text, sizeof(text)));
	snprintf(ssh->host, sizeof(ssh->host), "%s", endpoint->host);
	ssh->joined = join;
	pthread_mutex_init(&ssh->lock, NULL);
	make_command(&words, endpoint, options, join);
	int r = start_child(ssh, words.items, &fd);
	if (r < 0) {
		free(ssh);
		return fail_errno(failure, r, "ssh-start", peer, NULL, "ssh cannot be started");
	}
	start_thread(ssh);
	r = stream_from_fds(fd, fd, peer, ret_stream);
	if (r < 0)
		return fail_errno(failure, r, "ssh-start", peer, NULL, "ssh cannot be started");
	(*ret_stream)->data = ssh;
	(*ret_stream)->operations = &ssh_operations;
	return 0;
}
