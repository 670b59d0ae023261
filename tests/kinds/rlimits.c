/* SPDX-License-Identifier: Apache-2.0 */
/* Resource limits of a process, and of a child of another user; some are lower than what the process already uses. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define LIMITS 16

struct limits {
	bool is_set;
	struct rlimit values[LIMITS];
};

static struct limits own, of_user;

static void lower(int which, rlim_t current, rlim_t maximum)
{
	struct rlimit limit;

	MUST(getrlimit(which, &limit));
	if (maximum < limit.rlim_max)
		limit.rlim_max = maximum;
	limit.rlim_cur = current < limit.rlim_max ? current : limit.rlim_max;
	MUST(setrlimit(which, &limit));
}

static void read_limits(struct rlimit *values)
{
	for (int i = 0; i < LIMITS; i++)
		MUST(getrlimit(i, &values[i]));
}

static void set_limits(struct limits *limits)
{
	lower(RLIMIT_CPU, 3600, 7200);
	lower(RLIMIT_FSIZE, 1 << 30, RLIM_INFINITY);
	lower(RLIMIT_CORE, 0, 12345);
	lower(RLIMIT_STACK, 4 << 20, 64 << 20);
	lower(RLIMIT_NICE, 0, 0);
	lower(RLIMIT_MSGQUEUE, 4096, 8192);
	lower(RLIMIT_SIGPENDING, 100, 200);
	lower(RLIMIT_MEMLOCK, 65536, 65536);
	lower(RLIMIT_RTTIME, 1000000, RLIM_INFINITY);
	/* Below what is in use: descriptors 900 and 901, more processes. */
	lower(RLIMIT_NOFILE, 50, 60);
	lower(RLIMIT_NPROC, 1, 1);
	read_limits(limits->values);
	limits->is_set = true;
}

static void compare(const char *who, const struct limits *limits)
{
	struct rlimit now[LIMITS];

	read_limits(now);
	for (int i = 0; i < LIMITS; i++)
		CHECK(now[i].rlim_cur == limits->values[i].rlim_cur && now[i].rlim_max == limits->values[i].rlim_max,
		      "%s: limit %d is %lu %lu, was %lu %lu", who, i, now[i].rlim_cur, now[i].rlim_max,
		      limits->values[i].rlim_cur, limits->values[i].rlim_max);
}

static void check_user(void *argument)
{
	if (!of_user.is_set) {
		set_limits(&of_user);
		MUST(setresgid(1001, 1001, 1001));
		MUST(setresuid(1001, 1001, 1001));
	}
	compare("user", &of_user);
}

int main(void)
{
	harness_start_child(check_user, NULL);
	harness_check_children();
	/* Less memory than it has; of another user's process only CAP_SYS_RESOURCE could make room for a dump. */
	lower(RLIMIT_AS, 1 << 20, 1ULL << 40);
	set_limits(&own);
	harness_ready();
	while (harness_wait_check()) {
		compare("root", &own);
		CHECK(mmap(NULL, 4 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED &&
		      errno == ENOMEM);
		harness_check_children();
		harness_report();
	}
	return 0;
}
