/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who a thread is: user and group ids, supplementary groups, capabilities, securebits.
 *
 * The kernel ties these together: changing user ids drops capabilities, dropping capabilities takes away the right to
 * change the rest, securebits forbid some of it. So at restore the order is: keep capabilities over id changes
 * (SECBIT_NO_SETUID_FIXUP), groups, ids, inheritable set, bounding set, ambient set, final securebits, final sets.
 * A step that would change nothing is left out: a restore without privileges then still works for tasks of the same
 * user. The program starts with criu's own credentials, which is what "change" is measured against.
 * Changing ids resets dumpable and the parent-death signal; their rows come later. A thread that has filters to
 * install first gets its credentials in its last program.
 */
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/task/seccomp.h"
#include "kinds/task/task_kind.h"
#include "kinds/task/thread_status.h"

enum { CAPABILITY_COUNT = 64, CAPABILITY_WORDS = 2, REAL = 0, EFFECTIVE, SAVED, FILE_SYSTEM };

static void put_set(struct dump *dump, uint64_t set, size_t *ret_count, uint32_t **ret_words)
{
	*ret_count = CAPABILITY_WORDS;
	*ret_words = arena_alloc(&dump->arena, CAPABILITY_WORDS * sizeof(**ret_words));
	(*ret_words)[0] = set;
	(*ret_words)[1] = set >> 32;
}

static uint64_t get_set(size_t count, const uint32_t *words)
{
	return (count > 0 ? words[0] : 0) | (count > 1 ? (uint64_t)words[1] << 32 : 0);
}

static int collect_thread(struct dump *dump, struct dump_thread *thread)
{
	CredsEntry *entry = arena_message(&dump->arena, CredsEntry, creds_entry);
	const struct thread_status *status;
	int error = thread_status_get(dump, thread, &status);

	if (error < 0)
		return error;
	entry->uid = status->uids[REAL];
	entry->euid = status->uids[EFFECTIVE];
	entry->suid = status->uids[SAVED];
	entry->fsuid = status->uids[FILE_SYSTEM];
	entry->gid = status->gids[REAL];
	entry->egid = status->gids[EFFECTIVE];
	entry->sgid = status->gids[SAVED];
	entry->fsgid = status->gids[FILE_SYSTEM];
	entry->n_groups = status->group_count;
	entry->groups = status->groups;
	put_set(dump, status->inheritable, &entry->n_cap_inh, &entry->cap_inh);
	put_set(dump, status->permitted, &entry->n_cap_prm, &entry->cap_prm);
	put_set(dump, status->effective, &entry->n_cap_eff, &entry->cap_eff);
	put_set(dump, status->bounding, &entry->n_cap_bnd, &entry->cap_bnd);
	put_set(dump, status->ambient, &entry->n_cap_amb, &entry->cap_amb);
	if (status->no_new_privs) {
		entry->has_no_new_privs = true;
		entry->no_new_privs = status->no_new_privs;
	}
	thread->core->thread_core->creds = entry;
	return 0;
}

static int inspect_thread(struct dump *dump, struct dump_thread *thread, struct program *program, void **state)
{
	size_t *step = arena_alloc(&dump->arena, sizeof(*step));

	*step = PROGRAM_CALL(program, SYS_prctl, PR_GET_SECUREBITS);
	program_describe(program, "prctl(PR_GET_SECUREBITS)");
	*state = step;
	return 0;
}

static int inspected_thread(struct dump *dump, struct dump_thread *thread, const struct program *program, void *state)
{
	thread->core->thread_core->creds->secbits = program_result(program, *(size_t *)state);
	return 0;
}

/* ---- restore ---- */

struct credentials {
	uint32_t uids[4], gids[4];
	uint32_t securebits;
	uint64_t inheritable, permitted, effective, bounding, ambient;
};

/*
 * These two take a call for each capability and are the same in all processes of the restore: they are asked once,
 * in criu. Nothing changes them before the last programs.
 */
static void read_sets_of_criu(struct restore *restore)
{
	if (restore->own_sets_known)
		return;
	for (unsigned i = 0; i < CAPABILITY_COUNT; i++) {
		int bounding = prctl(PR_CAPBSET_READ, i, 0, 0, 0);
		if (bounding < 0)
			break;
		restore->own_bounding |= (uint64_t)(bounding == 1) << i;
		restore->own_ambient |= (uint64_t)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) == 1) << i;
	}
	restore->own_sets_known = true;
}

static void read_own_capabilities(struct restore *restore, struct credentials *own)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[CAPABILITY_WORDS] = {};

	syscall(SYS_capget, &header, data);
	own->inheritable = data[0].inheritable | (uint64_t)data[1].inheritable << 32;
	own->permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
	own->effective = data[0].effective | (uint64_t)data[1].effective << 32;
	read_sets_of_criu(restore);
	own->bounding = restore->own_bounding;
	own->ambient = restore->own_ambient;
}

static void read_own(struct restore *restore, struct credentials *own)
{
	*own = (struct credentials){};
	getresuid(&own->uids[REAL], &own->uids[EFFECTIVE], &own->uids[SAVED]);
	getresgid(&own->gids[REAL], &own->gids[EFFECTIVE], &own->gids[SAVED]);
	/* An impossible id changes nothing; the answer is the present one. */
	own->uids[FILE_SYSTEM] = setfsuid(-1);
	own->gids[FILE_SYSTEM] = setfsgid(-1);
	own->securebits = prctl(PR_GET_SECUREBITS);
	read_own_capabilities(restore, own);
}

/* What the entry says, without the capabilities that criu does not have to give. */
static void read_wanted(const CredsEntry *entry, const struct credentials *own, struct credentials *wanted)
{
	*wanted = (struct credentials){
		.uids = {entry->uid, entry->euid, entry->suid, entry->fsuid},
		.gids = {entry->gid, entry->egid, entry->sgid, entry->fsgid},
		.securebits = entry->secbits,
	};
	wanted->permitted = get_set(entry->n_cap_prm, entry->cap_prm) & own->permitted;
	wanted->effective = get_set(entry->n_cap_eff, entry->cap_eff) & wanted->permitted;
	wanted->inheritable =
		get_set(entry->n_cap_inh, entry->cap_inh) & (own->inheritable | (own->permitted & own->bounding));
	wanted->bounding = get_set(entry->n_cap_bnd, entry->cap_bnd);
	wanted->ambient = get_set(entry->n_cap_amb, entry->cap_amb) & wanted->permitted & wanted->inheritable;
}

static bool same_groups(const CredsEntry *entry)
{
	int count = getgroups(0, NULL);
	_cleanup_free_ gid_t *groups = xcalloc(count > 0 ? count : 1, sizeof(*groups));

	return count >= 0 && (size_t)count == entry->n_groups && getgroups(count, groups) == count &&
	       (!count || !memcmp(groups, entry->groups, count * sizeof(*groups)));
}

/* fs ids have calls that report no errors: they return the id before, so the second call must see the new one. */
static void plan_file_system_id(struct program *program, long number, uint32_t id)
{
	PROGRAM_TRY(program, number, id);
	size_t step = PROGRAM_CALL(program, number, -1);
	program_expect(program, step, id);
	program_describe(program, number == SYS_setfsuid ? "setfsuid" : "setfsgid");
}

static void plan_ids(struct program *program, const CredsEntry *entry, const struct credentials *wanted)
{
	const uint32_t *uids = wanted->uids, *gids = wanted->gids;

	if (!same_groups(entry)) {
		remote_t groups = program_copy(program, entry->groups, entry->n_groups * sizeof(*entry->groups));
		PROGRAM_CALL(program, SYS_setgroups, entry->n_groups, groups.address);
		program_describe(program, "setgroups");
	}
	PROGRAM_CALL(program, SYS_setresgid, gids[REAL], gids[EFFECTIVE], gids[SAVED]);
	program_describe(program, "setresgid");
	plan_file_system_id(program, SYS_setfsgid, gids[FILE_SYSTEM]);
	PROGRAM_CALL(program, SYS_setresuid, uids[REAL], uids[EFFECTIVE], uids[SAVED]);
	program_describe(program, "setresuid");
	plan_file_system_id(program, SYS_setfsuid, uids[FILE_SYSTEM]);
}

static void plan_capset(struct program *program, uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	const struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	const struct __user_cap_data_struct data[CAPABILITY_WORDS] = {
		{effective, permitted, inheritable},
		{effective >> 32, permitted >> 32, inheritable >> 32},
	};
	remote_t header_at = program_copy(program, &header, sizeof(header));
	remote_t data_at = program_copy(program, data, sizeof(data));

	PROGRAM_CALL(program, SYS_capset, header_at.address, data_at.address);
	program_describe(program, "capset");
}

static void plan_each(struct program *program, uint64_t set, int operation, int argument, const char *description)
{
	for (unsigned i = 0; i < CAPABILITY_COUNT; i++) {
		if (!(set >> i & 1))
			continue;
		if (operation == PR_CAP_AMBIENT)
			PROGRAM_CALL(program, SYS_prctl, operation, argument, i);
		else
			PROGRAM_CALL(program, SYS_prctl, operation, i);
		program_describe(program, description);
	}
}

static void plan_securebits(struct program *program, uint32_t *now, uint32_t wanted)
{
	if (*now == wanted)
		return;
	PROGRAM_CALL(program, SYS_prctl, PR_SET_SECUREBITS, wanted);
	program_describe(program, "prctl(PR_SET_SECUREBITS)");
	*now = wanted;
}

static void plan_capabilities(struct program *program, const struct credentials *own, const struct credentials *wanted)
{
	uint64_t drop = own->bounding & ~wanted->bounding;

	/* The inheritable set first: what the bounding set lacks can no longer be added to it. */
	if (drop || wanted->inheritable != own->inheritable || wanted->ambient != own->ambient)
		plan_capset(program, own->permitted, own->permitted, wanted->inheritable);
	plan_each(program, drop, PR_CAPBSET_DROP, 0, "prctl(PR_CAPBSET_DROP)");
	if (wanted->ambient != own->ambient && own->ambient) {
		PROGRAM_CALL(program, SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
		program_describe(program, "prctl(PR_CAP_AMBIENT_CLEAR_ALL)");
	}
	if (wanted->ambient != own->ambient)
		plan_each(program, wanted->ambient, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE,
			  "prctl(PR_CAP_AMBIENT_RAISE)");
}

static void plan(struct restore *restore, const CoreEntry *thread, struct program *program)
{
	const CredsEntry *entry = thread->thread_core->creds;
	struct credentials own, wanted;

	if (!entry)
		return;
	read_own(restore, &own);
	read_wanted(entry, &own, &wanted);
	uint32_t securebits = own.securebits;
	if (memcmp(own.uids, wanted.uids, sizeof(own.uids)) || memcmp(own.gids, wanted.gids, sizeof(own.gids)) ||
	    !same_groups(entry)) {
		plan_securebits(program, &securebits, securebits | SECBIT_NO_SETUID_FIXUP);
		plan_ids(program, entry, &wanted);
	}
	plan_capabilities(program, &own, &wanted);
	plan_securebits(program, &securebits, wanted.securebits);
	plan_capset(program, wanted.effective, wanted.permitted, wanted.inheritable);
}

static int plan_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread, pid_t tid,
		       struct program *program)
{
	if (!seccomp_is_late(task, thread, tid))
		plan(restore, thread, program);
	return 0;
}

static int plan_last_thread(struct restore *restore, const struct restore_task *task, const CoreEntry *thread,
			    pid_t tid, struct program *program)
{
	if (seccomp_is_late(task, thread, tid))
		plan(restore, thread, program);
	return 0;
}

static int check(struct restore *restore, const struct restore_task *task)
{
	struct credentials own;

	if (task->state == TASK_STATE_DEAD)
		return 0;
	read_own(restore, &own);
	for (size_t i = 0; i < task->thread_count; i++) {
		const CredsEntry *entry = task->thread_cores[i]->thread_core->creds;
		uint64_t lost = entry ? get_set(entry->n_cap_prm, entry->cap_prm) & ~own.permitted : 0;
		if (!lost)
			continue;
		log_warn("%s: criu does not have capabilities %#lx itself, the task goes on without them",
			 restore_task_name(restore, task), lost);
		break;
	}
	return 0;
}

const struct task_kind creds_kind = {
	.name = "credentials",
	.collect_thread = collect_thread,
	.inspect_thread = inspect_thread,
	.inspected_thread = inspected_thread,
	.check = check,
	.plan_thread = plan_thread,
	.plan_last_thread = plan_last_thread,
};
