/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/task/process_facts.h"

#include <errno.h>
#include <fcntl.h>

#include "base/fd.h"
#include "base/parallel.h"
#include "kernel/proc.h"

enum { PROCESSES_WORTH_A_READER = 8 };

static const char *const text_names[PROCESS_TEXT_COUNT] = {
	"auxv", "attr/current", "oom_score_adj", "loginuid", "coredump_filter", "timers", "autogroup",
};

static const char *const link_names[PROCESS_LINK_COUNT] = {"exe", "cwd", "root"};

static void read_link(int proc_dirfd, const char *name, struct process_link_fact *link)
{
	link->error = fstatat(proc_dirfd, name, &link->stat, 0) < 0 ? -errno : 0;
	if (!link->error)
		link->error = read_link_at(proc_dirfd, name, &link->target);
}

/* Its session leader may be dead, and dead ones have no group any more: then one of its first has. */
static bool represents_session(const struct dump *dump, const struct dump_task *task)
{
	const struct dump_task *root = dump->tasks[0], *parent = task->parent;

	if (task->sid == root->sid && root->sid != root->pid)
		return false;
	return task->sid == task->pid || !parent || parent->sid != task->sid || parent->state == TASK_STATE_DEAD;
}

static void read_process(void *context, size_t index)
{
	const struct dump *dump = context;
	const struct dump_task *task = dump->tasks[index];
	struct process_facts *facts = task->facts;

	if (!facts)
		return;
	for (int i = 0; i < PROCESS_TEXT_COUNT; i++)
		facts->texts[i].error = i == PROCESS_AUTOGROUP && !represents_session(dump, task)
						? -ENODATA
						: proc_read_text(task->proc_dirfd, text_names[i], &facts->texts[i].text,
								 &facts->texts[i].length);
	for (int i = 0; i < PROCESS_LINK_COUNT; i++)
		read_link(task->proc_dirfd, link_names[i], &facts->links[i]);
}

void process_facts_read(struct dump *dump)
{
	for (size_t i = 0; i < dump->task_count; i++)
		if (dump->tasks[i]->state != TASK_STATE_DEAD)
			dump->tasks[i]->facts = xcalloc(1, sizeof(*dump->tasks[i]->facts));
	parallel_for(dump->task_count, PROCESSES_WORTH_A_READER, read_process, dump);
}

void process_facts_free(struct dump_task *task)
{
	if (!task->facts)
		return;
	for (int i = 0; i < PROCESS_TEXT_COUNT; i++)
		free(task->facts->texts[i].text);
	for (int i = 0; i < PROCESS_LINK_COUNT; i++)
		free(task->facts->links[i].target);
	free(task->facts);
	task->facts = NULL;
}

int process_facts_take(struct dump_task *task, enum process_text which, char **ret_text, size_t *ret_length)
{
	int error = task->facts->texts[which].error;

	if (error < 0)
		return error;
	*ret_text = TAKE_POINTER(task->facts->texts[which].text);
	if (ret_length)
		*ret_length = task->facts->texts[which].length;
	return 0;
}
