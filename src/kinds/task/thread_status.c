/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/task/thread_status.h"

#include <string.h>

#include "base/fd.h"
#include "kernel/proc.h"
#include "kinds/task/thread_facts.h"

static int parse_number(const char *text, const char *name, int base, uint64_t *ret_value)
{
	const char *value = proc_field(text, name);
	char *end;

	if (!value)
		return -EPROTO;
	*ret_value = strtoull(value, &end, base);
	return end == value ? -EPROTO : 0;
}

static int parse_ids(const char *text, const char *name, uint32_t ids[4])
{
	const char *value = proc_field(text, name);

	for (unsigned i = 0; i < 4; i++) {
		char *end;
		if (!value)
			return -EPROTO;
		ids[i] = strtoul(value, &end, 10);
		if (end == value)
			return -EPROTO;
		value = end;
	}
	return 0;
}

/* "Groups:\t4 24 27 \n", any number of them. */
static int parse_groups(struct dump *dump, const char *text, struct thread_status *status)
{
	const char *value = proc_field(text, "Groups"), *line_end = value ? strchrnul(value, '\n') : NULL;

	if (!value)
		return -EPROTO;
	/* A number takes at least two characters. */
	status->groups = arena_alloc(&dump->arena, ((line_end - value) / 2 + 1) * sizeof(*status->groups));
	while (value < line_end) {
		char *end;
		uint32_t group = strtoul(value, &end, 10);
		if (end == value || end > line_end)
			break;
		status->groups[status->group_count++] = group;
		value = end;
		while (value < line_end && *value == ' ')
			value++;
	}
	return 0;
}

static bool has_shadow_stack(const char *text)
{
	const char *value = proc_field(text, "x86_Thread_features"), *found = value ? strstr(value, "shstk") : NULL;

	return found && found < strchrnul(value, '\n');
}

static int parse_status(struct dump *dump, const char *text, struct thread_status *status)
{
	const struct {
		const char *name;
		int base;
		uint64_t *value;
	} sets[] = {
		{"CapInh", 16, &status->inheritable},    {"CapPrm", 16, &status->permitted},
		{"CapEff", 16, &status->effective},      {"CapBnd", 16, &status->bounding},
		{"CapAmb", 16, &status->ambient},        {"SigPnd", 16, &status->pending},
		{"ShdPnd", 16, &status->pending_shared},
	};
	uint64_t no_new_privs = 0, seccomp_mode = 0, mask = 0, fd_slots = 0;
	int error = 0;

	for (size_t i = 0; i < ARRAY_SIZE(sets) && !error; i++)
		error = parse_number(text, sets[i].name, sets[i].base, sets[i].value);
	if (!error)
		error = parse_ids(text, "Uid", status->uids);
	if (!error)
		error = parse_ids(text, "Gid", status->gids);
	if (!error)
		error = parse_groups(dump, text, status);
	if (!error)
		error = parse_number(text, "Umask", 8, &mask);
	if (!error)
		error = parse_number(text, "FDSize", 10, &fd_slots);
	/* Kernels without the features do not have the lines. */
	parse_number(text, "NoNewPrivs", 10, &no_new_privs);
	parse_number(text, "Seccomp", 10, &seccomp_mode);
	status->no_new_privs = no_new_privs;
	status->seccomp_mode = seccomp_mode;
	status->umask = mask;
	status->fd_slots = fd_slots;
	status->shadow_stack = has_shadow_stack(text);
	return error;
}

int thread_status_refresh(struct dump *dump, struct dump_thread *thread, const struct thread_status **ret_status)
{
	struct thread_status *status = arena_alloc(&dump->arena, sizeof(*status));
	_cleanup_free_ char *text = NULL;
	char path[48];
	int error = 0;

	if (thread->facts && (thread->facts->status || thread->facts->status_error)) {
		error = thread->facts->status_error;
		text = TAKE_POINTER(thread->facts->status);
	} else {
		snprintf(path, sizeof(path), "task/%d/status", thread->tid);
		error = proc_read_text(thread->task->proc_dirfd, path, &text, NULL);
	}
	if (!error)
		error = parse_status(dump, text, status);
	if (error < 0)
		return fail_errno(&dump->failure, error, "task-status", dump_task_name(dump, thread->task), NULL,
				  "cannot read the status of thread %d", thread->tid);
	thread->status = status;
	*ret_status = status;
	return 0;
}

int thread_status_get(struct dump *dump, struct dump_thread *thread, const struct thread_status **ret_status)
{
	if (!thread->status)
		return thread_status_refresh(dump, thread, ret_status);
	*ret_status = thread->status;
	return 0;
}
