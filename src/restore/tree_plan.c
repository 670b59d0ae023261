/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planning the forks.
 *
 * A process gets its session from the process that forks it and leaves it only by setsid(); it gets its parent by
 * fork or, when that one ends, by adoption. So for each task:
 *   - its parent forks it, when the parent is in the right session at that time: after the parent's own setsid(), or
 *     before it (the parent's first session);
 *   - else the leader of its session forks a helper that forks the task and ends; the nearest subreaper above the
 *     leader adopts the task, and that must be the parent that the images name;
 *   - a leader that is long dead is played by a helper with its pid, which ends when its children exist.
 */
#include "restore/tree.h"

#include "base/fd.h"

static struct restore_tree_node *new_node(struct restore *restore, pid_t pid, struct restore_task *task)
{
	struct restore_tree_node *node = arena_alloc(&restore->arena, sizeof(*node));

	node->pid = pid;
	node->task = task;
	if (task)
		task->node = node;
	return node;
}

static void add_child(struct restore_tree_node *creator, struct restore_tree_node *child)
{
	ARRAY_GROW(creator->children, creator->child_count, creator->child_capacity);
	creator->children[creator->child_count++] = child;
}

/* The session a task is born into: its creator's at that moment. */
static pid_t first_session(const struct restore_task *task)
{
	return task->parent ? task->parent->sid : 0;
}

static bool is_subreaper(const struct restore_task *task)
{
	return task->pid == 1 ||
	       (task->core->tc && task->core->tc->has_child_subreaper && task->core->tc->child_subreaper);
}

/* Who would adopt an orphan below @task. */
static struct restore_task *adopter_above(struct restore_task *task)
{
	for (task = task->parent; task; task = task->parent)
		if (is_subreaper(task))
			return task;
	return NULL;
}

static struct restore_tree_node *find_helper_leader(struct restore_task *parent, pid_t sid)
{
	for (size_t i = 0; i < parent->node->child_count; i++)
		if (!parent->node->children[i]->task && parent->node->children[i]->pid == sid)
			return parent->node->children[i];
	return NULL;
}

static int plan_orphan(struct restore *restore, struct restore_task *task, struct restore_tree_node *node)
{
	struct restore_task *leader = restore_find_task(restore, task->sid);
	struct restore_tree_node *helper;

	node->adopted = true;
	if (!is_subreaper(task->parent))
		return fail(&restore->failure, EOPNOTSUPP, "tree-session", restore_task_name(restore, task), NULL,
			    "it is in session %d, which it cannot have got from its parent, and its parent %d is no "
			    "subreaper",
			    task->sid, task->parent->pid);
	if (!leader) {
		helper = find_helper_leader(task->parent, task->sid);
		if (!helper) {
			helper = new_node(restore, task->sid, NULL);
			helper->makes_session = helper->ends_after_fork = true;
			add_child(task->parent->node, helper);
		}
		add_child(helper, node);
		return 0;
	}
	if (adopter_above(leader) != task->parent && leader->parent != task->parent)
		return fail(&restore->failure, EOPNOTSUPP, "tree-session", restore_task_name(restore, task), NULL,
			    "its session leader %d is not below the subreaper %d that is its parent", leader->pid,
			    task->parent->pid);
	helper = new_node(restore, 0, NULL);
	helper->ends_after_fork = true;
	add_child(leader->node, helper);
	add_child(helper, node);
	return 0;
}

static int plan_task(struct restore *restore, struct restore_task *task)
{
	struct restore_tree_node *node = task->node;

	node->makes_session = task->sid == task->pid;
	if (node->makes_session || task->sid == task->parent->sid) {
		add_child(task->parent->node, node);
		return 0;
	}
	if (task->parent->sid == task->parent->pid && task->sid == first_session(task->parent)) {
		node->before_session = true;
		add_child(task->parent->node, node);
		return 0;
	}
	return plan_orphan(restore, task, node);
}

int tree_plan(struct restore *restore, struct restore_tree_node **ret_root)
{
	for (size_t i = 0; i < restore->task_count; i++)
		new_node(restore, restore->tasks[i]->pid, restore->tasks[i]);
	restore->tasks[0]->node->makes_session = restore->tasks[0]->sid == restore->tasks[0]->pid;
	for (size_t i = 1; i < restore->task_count; i++) {
		int error = plan_task(restore, restore->tasks[i]);
		if (error < 0)
			return error;
	}
	*ret_root = restore->tasks[0]->node;
	return 0;
}

static bool inherits_group(const struct restore_task *task)
{
	const struct restore_tree_node *node = task->node;

	if (node->makes_session)
		return task->pgid == task->pid;
	return task->parent && !node->before_session && !node->adopted && task->pgid == task->parent->pgid;
}

bool tree_inherits_groups(const struct restore *restore)
{
	for (size_t i = 0; i < restore->task_count; i++)
		if (!inherits_group(restore->tasks[i]))
			return false;
	return true;
}

pid_t tree_inherited_session(const struct restore *restore)
{
	const struct restore_task *root = restore->tasks[0];

	return root->sid == root->pid ? 0 : root->sid;
}

void tree_print(const struct restore_tree_node *node, int depth, void *file)
{
	char pid[16] = "any pid";

	if (node->pid)
		snprintf(pid, sizeof(pid), "%d", node->pid);
	fprintf(file, "%*sfork %s%s%s%s%s\n", depth * 2, "", pid, node->task ? "" : " (helper)",
		node->before_session ? ", before the creator's setsid" : "", node->makes_session ? ", setsid" : "",
		node->adopted ? ", adopted by a subreaper" : "");
	for (size_t i = 0; i < node->child_count; i++)
		tree_print(node->children[i], depth + 1, file);
}
