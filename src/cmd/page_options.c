/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/page_options.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "cmd/wire_options.h"
#include "migrate/tls.h"

int page_link_options_load(struct command *command, struct page_link_options *ret_link)
{
	const struct options *options = command->options;
	struct tls_credentials *credentials = NULL;
	struct wire_options wire;

	wire_options_fill(options, &wire);
	int error = options->tls ? tls_credentials_load(&wire.tls, &command->failure, &credentials) : 0;
	if (error < 0)
		return error;
	*ret_link = (struct page_link_options){
		.address = options->addresses.count ? options->addresses.items[options->addresses.count - 1] : NULL,
		.port = (uint16_t)options->port,
		.socket_fd = options->ps_socket,
		.credentials = credentials,
	};
	return 0;
}

void page_link_options_free(struct page_link_options *link)
{
	struct tls_credentials *credentials = (struct tls_credentials *)link->credentials;

	tls_credentials_free(&credentials);
	link->credentials = NULL;
}

void server_ready(const struct options *options, unsigned port)
{
	const char zero = 0;

	if (!options->port && port) {
		printf("%u\n", port);
		fflush(stdout);
	}
	if (options->status_fd >= 0) {
		write_full(options->status_fd, &zero, sizeof(zero));
		close(options->status_fd);
	}
}

/* The shell gets its status when the server is ready, or has failed and told why. */
static void __attribute__((noreturn)) wait_for_child(pid_t pid, int fd)
{
	char byte;
	int status;

	if (read_full(fd, &byte, sizeof(byte)) == 0)
		_exit(0);
	_exit(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1);
}

static int write_pidfile(struct command *command)
{
	const char *path = command->options->pidfile;
	char text[16];

	if (!path)
		return 0;
	_cleanup_fd_ int fd = openat(command->work_dirfd, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	int length = snprintf(text, sizeof(text), "%d", getpid());
	int error = fd < 0 ? -errno : write_full(fd, text, length);
	return error ? fail_errno(&command->failure, error, "pidfile", path,
				  error == -EEXIST ? "remove it, or choose another name" : NULL,
				  "cannot write the pid file")
		     : 0;
}

/* Returns in the child. */
static int go_to_background(struct command *command, int *ret_fd)
{
	int pair[2];

	if (pipe2(pair, O_CLOEXEC) < 0)
		return fail_errno(&command->failure, errno, "daemon", NULL, NULL, "no pipe");
	fflush(NULL);
	pid_t pid = fork();
	if (pid < 0)
		return fail_errno(&command->failure, errno, "daemon", NULL, NULL, "cannot fork");
	if (pid) {
		close(pair[1]);
		wait_for_child(pid, pair[0]);
	}
	close(pair[0]);
	setsid();
	*ret_fd = pair[1];
	return 0;
}

int daemon_begin(struct command *command, int *ret_fd)
{
	*ret_fd = -1;
	int error = command->options->daemon ? go_to_background(command, ret_fd) : 0;
	return error ? error : write_pidfile(command);
}

void daemon_ready(int fd)
{
	const char byte = 1;
	_cleanup_fd_ int nowhere = -1;

	if (fd < 0)
		return;
	nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
	fflush(stdout);
	if (nowhere >= 0) {
		dup2(nowhere, STDIN_FILENO);
		dup2(nowhere, STDOUT_FILENO);
	}
	write_full(fd, &byte, sizeof(byte));
	close(fd);
}
