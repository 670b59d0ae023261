/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credentials: each child is somebody else and looks at itself. A thread has other ids than its process.
 */
#include "harness.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MANY_GROUPS 300

struct identity {
	uid_t uids[4];
	gid_t gids[4];
	int group_count;
	gid_t groups[MANY_GROUPS];
	struct __user_cap_data_struct capabilities[2];
	uint64_t bounding, ambient;
	int securebits, no_new_privs, dumpable, keep_capabilities;
};

static void look(struct identity *me)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

	memset(me, 0, sizeof(*me));
	MUST(getresuid(&me->uids[0], &me->uids[1], &me->uids[2]));
	MUST(getresgid(&me->gids[0], &me->gids[1], &me->gids[2]));
	me->uids[3] = setfsuid(-1);
	me->gids[3] = setfsgid(-1);
	me->group_count = MUST(getgroups(MANY_GROUPS, me->groups));
	MUST(syscall(SYS_capget, &header, me->capabilities));
	for (int i = 0; i < 64; i++) {
		me->bounding |= (uint64_t)(prctl(PR_CAPBSET_READ, i) == 1) << i;
		me->ambient |= (uint64_t)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) == 1) << i;
	}
	me->securebits = prctl(PR_GET_SECUREBITS);
	me->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
	me->dumpable = prctl(PR_GET_DUMPABLE);
	me->keep_capabilities = prctl(PR_GET_KEEPCAPS);
}

static void compare(const char *who, const struct identity *before, const struct identity *now)
{
	CHECK(!memcmp(before->uids, now->uids, sizeof(now->uids)), "%s: uid %d %d %d %d", who, now->uids[0],
	      now->uids[1], now->uids[2], now->uids[3]);
	CHECK(!memcmp(before->gids, now->gids, sizeof(now->gids)), "%s: gid %d %d %d %d", who, now->gids[0],
	      now->gids[1], now->gids[2], now->gids[3]);
	CHECK(before->group_count == now->group_count && !memcmp(before->groups, now->groups, sizeof(now->groups)),
	      "%s: %d groups, were %d", who, now->group_count, before->group_count);
	CHECK(!memcmp(before->capabilities, now->capabilities, sizeof(now->capabilities)),
	      "%s: permitted %x effective %x inheritable %x", who, now->capabilities[0].permitted,
	      now->capabilities[0].effective, now->capabilities[0].inheritable);
	CHECK(before->bounding == now->bounding, "%s: bounding %lx, was %lx", who, now->bounding, before->bounding);
	CHECK(before->ambient == now->ambient, "%s: ambient %lx, was %lx", who, now->ambient, before->ambient);
	CHECK(before->securebits == now->securebits, "%s: securebits %x", who, now->securebits);
	CHECK(before->no_new_privs == now->no_new_privs, "%s: no_new_privs %d", who, now->no_new_privs);
	CHECK(before->dumpable == now->dumpable, "%s: dumpable %d, was %d", who, now->dumpable, before->dumpable);
	CHECK(before->keep_capabilities == now->keep_capabilities, "%s: keepcaps %d", who, now->keep_capabilities);
}

static void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{effective, permitted, inheritable},
						 {effective >> 32, permitted >> 32, inheritable >> 32}};

	MUST(syscall(SYS_capset, &header, data));
}

static void become_user(void)
{
	const gid_t groups[] = {4, 20, 27};

	MUST(setgroups(3, groups));
	MUST(setresgid(1001, 1001, 1001));
	MUST(setresuid(1001, 1001, 1001));
}

static void become_user_that_may_be_seen(void)
{
	become_user();
	MUST(prctl(PR_SET_DUMPABLE, 1));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void become_mixed(void)
{
	gid_t groups[MANY_GROUPS];

	for (int i = 0; i < MANY_GROUPS; i++)
		groups[i] = 5000 + 3 * i;
	MUST(setgroups(MANY_GROUPS, groups));
	MUST(setresgid(10, 11, 12));
	setfsgid(13);
	MUST(setresuid(21, 0, 23));
	setfsuid(24);
}

static void become_limited_root(void)
{
	/* What the bounding set lacks may stay in the inheritable set. */
	set_capabilities(1 << CAP_SETPCAP, 1 << CAP_SETPCAP | 1 << CAP_CHOWN | 1 << CAP_NET_ADMIN | 1 << CAP_KILL,
			 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW);
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
	MUST(prctl(PR_CAPBSET_DROP, CAP_NET_RAW));
	set_capabilities(1 << CAP_CHOWN, 1 << CAP_CHOWN | 1 << CAP_NET_ADMIN | 1 << CAP_KILL,
			 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW);
}

static void become_user_with_capabilities(void)
{
	MUST(prctl(PR_SET_KEEPCAPS, 1));
	become_user();
	set_capabilities(1 << CAP_SETPCAP, 1 << CAP_SETPCAP | 1 << CAP_NET_BIND_SERVICE | 1 << CAP_KILL,
			 1 << CAP_NET_BIND_SERVICE);
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NOROOT | SECBIT_NO_CAP_AMBIENT_RAISE |
					      SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
	set_capabilities(0, 1 << CAP_NET_BIND_SERVICE | 1 << CAP_KILL, 1 << CAP_NET_BIND_SERVICE);
}

static struct person {
	const char *name;
	void (*become)(void);
	bool is_made;
	struct identity identity;
} people[] = {
	{"user", become_user},
	{"visible user", become_user_that_may_be_seen},
	{"mixed", become_mixed},
	{"limited root", become_limited_root},
	{"user with capabilities", become_user_with_capabilities},
};

static void check_person(void *argument)
{
	struct person *person = argument;
	struct identity now;

	if (!person->is_made) {
		person->become();
		look(&person->identity);
		person->is_made = true;
	}
	look(&now);
	compare(person->name, &person->identity, &now);
}

static sem_t thread_check, thread_checked;

/* The C library would change all threads; the kernel's own calls change one. */
static void *other_thread(void *argument)
{
	struct identity before, now;

	MUST(syscall(SYS_setresgid, 31, 32, 33));
	MUST(syscall(SYS_setresuid, 41, 42, 43));
	look(&before);
	sem_post(&thread_checked);
	for (;;) {
		while (sem_wait(&thread_check) < 0)
			;
		look(&now);
		compare("thread", &before, &now);
		sem_post(&thread_checked);
	}
	return NULL;
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

int main(void)
{
	pthread_t thread;
	struct identity before, now;

	if (geteuid() != 0)
		harness_skip("needs root");
	for (size_t i = 0; i < sizeof(people) / sizeof(people[0]); i++)
		harness_start_child(check_person, &people[i]);
	harness_check_children();
	sem_init(&thread_check, 0, 0);
	sem_init(&thread_checked, 0, 0);
	MUST_ZERO(pthread_create(&thread, NULL, other_thread, NULL));
	wait_for(&thread_checked);
	look(&before);
	harness_ready();
	while (harness_wait_check()) {
		look(&now);
		compare("root", &before, &now);
		sem_post(&thread_check);
		wait_for(&thread_checked);
		harness_check_children();
		harness_report();
	}
	return 0;
}
