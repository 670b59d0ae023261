/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A script is executed directly, not through a shell: its first line says what runs it, and a name with spaces needs
 * no quotes. It starts with no signal blocked or ignored, whatever criu has set up for itself.
 */
#include "model/action_script.h"

#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/log.h"

extern char **environ;

enum { ADDED_VARIABLES = 3 };

static void free_environment(char ***environment)
{
	/* Only the variables that were added are ours. */
	for (size_t i = 0; i < ADDED_VARIABLES && *environment; i++)
		free((*environment)[i]);
	free(*environment);
}

static bool is_added_variable(const char *variable)
{
	return !strncmp(variable, "CRTOOLS_SCRIPT_ACTION=", 22) || !strncmp(variable, "CRTOOLS_IMAGE_DIR=", 18) ||
	       !strncmp(variable, "CRTOOLS_INIT_PID=", 17);
}

/* The new variables come first, NULL-terminated; the inherited ones follow, without older values of the same names. */
static char **make_environment(const struct action_scripts *scripts, const char *action, pid_t root_pid)
{
	size_t inherited = 0, used = ADDED_VARIABLES;

	while (environ[inherited])
		inherited++;
	char **environment = xcalloc(inherited + ADDED_VARIABLES + 1, sizeof(*environment));
	environment[0] = xasprintf("CRTOOLS_SCRIPT_ACTION=%s", action);
	environment[1] = xasprintf("CRTOOLS_IMAGE_DIR=%s", scripts->images_dir ?: "");
	/* Without a root yet the slot holds a repetition, which is harmless. */
	environment[2] = root_pid > 0 ? xasprintf("CRTOOLS_INIT_PID=%d", root_pid)
				      : xasprintf("CRTOOLS_SCRIPT_ACTION=%s", action);
	for (size_t i = 0; i < inherited; i++)
		if (!is_added_variable(environ[i]))
			environment[used++] = environ[i];
	return environment;
}

static int spawn_script(const char *path, char **environment, pid_t *ret_pid)
{
	char *const arguments[] = {(char *)path, NULL};
	posix_spawnattr_t attributes;
	sigset_t none, all;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	int error = posix_spawnp(ret_pid, path, NULL, &attributes, arguments, environment);
	posix_spawnattr_destroy(&attributes);
	return -error;
}

static int run_script(const char *path, char **environment, struct failure *failure)
{
	int status;
	pid_t pid;
	int r = spawn_script(path, environment, &pid);

	if (r < 0)
		return fail_errno(failure, r, "script-exec", path, "it must be an executable file",
				  "cannot be executed");
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return fail_errno(failure, errno, "script-wait", path, NULL, "cannot be waited for");
	if (WIFSIGNALED(status))
		return fail(failure, ECANCELED, "script-failed", path, NULL, "ended by signal %d", WTERMSIG(status));
	if (WEXITSTATUS(status))
		return fail(failure, ECANCELED, "script-failed", path, NULL, "exited with status %d",
			    WEXITSTATUS(status));
	return 0;
}

int action_scripts_run(const struct action_scripts *scripts, const char *action, pid_t root_pid,
		       struct failure *failure)
{
	if (!scripts || !scripts->count)
		return 0;
	__attribute__((cleanup(free_environment))) char **environment = make_environment(scripts, action, root_pid);
	for (size_t i = 0; i < scripts->count; i++) {
		log_info("action script %s: %s", action, scripts->paths[i]);
		if (run_script(scripts->paths[i], environment, failure) < 0)
			return fail_in(failure, "action script, %s", action);
	}
	return 0;
}
