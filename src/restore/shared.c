/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/shared.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "kinds/fd/fd_kind.h"
#include "restore/tree.h"

enum { TASK_DEAD = 2, WATCH_INTERVAL_NS = 20 * 1000 * 1000, ALIVE_INTERVAL_NS = 200 * 1000 * 1000 };

/* Returns true if the time is over. */
static bool futex_wait(_Atomic uint32_t *word, uint32_t seen, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout, NULL, 0) < 0 && errno == ETIMEDOUT;
}

static void futex_wake_all(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static size_t round_up(size_t bytes)
{
	return (bytes + 63) / 64 * 64;
}

/* A barrier that hundreds of processes meet at costs them two switches each: those that this tree can do without stay
 * out. */
static void expect(const struct restore *restore, struct restore_shared *shared)
{
	bool connects = false, finishes = false, groups = !tree_inherits_groups(restore);
	uint32_t live = 0;

	for (size_t i = 0; i < restore->task_count; i++)
		live += restore->tasks[i]->state != TASK_DEAD;
	for (size_t i = 0; i < restore->file_count; i++) {
		const struct fd_kind *kind = restore->files[i]->kind;
		connects |= kind && kind->connect;
		finishes |= kind && (kind->finish || kind->finish_task);
	}
	shared->barriers[BARRIER_STARTED].expected = 1;
	shared->barriers[BARRIER_FORKED].expected = restore->task_count;
	shared->barriers[BARRIER_GROUPS].expected = groups ? restore->task_count : 0;
	shared->barriers[BARRIER_JOINED].expected = groups ? restore->task_count : 0;
	shared->barriers[BARRIER_OPENED].expected = live;
	shared->barriers[BARRIER_CONNECTED].expected = connects ? live : 0;
	shared->barriers[BARRIER_FINISHED].expected = connects || finishes ? live : 0;
}

int shared_create(struct restore *restore)
{
	size_t words = round_up(restore->task_count * sizeof(_Atomic uint32_t));
	size_t slots = restore->file_count * sizeof(struct shared_slot);
	size_t header = round_up(sizeof(struct restore_shared));
	size_t bytes = header + 2 * words + SHARED_SLOT_KINDS * slots;
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return fail_errno(&restore->failure, errno, "restore-shared", NULL, NULL, "cannot map shared memory");
	struct restore_shared *shared = (void *)memory;
	shared->bytes = bytes;
	shared->criu = getpid();
	shared->born = (void *)(memory + header);
	shared->notify_fd = (void *)(memory + header + words);
	for (int kind = 0; kind < SHARED_SLOT_KINDS; kind++)
		shared->slots[kind] = (void *)(memory + header + 2 * words + kind * slots);
	expect(restore, shared);
	restore->shared = shared;
	return 0;
}

void shared_free(struct restore_shared *shared)
{
	if (shared)
		munmap(shared, shared->bytes);
}

void shared_abort(struct restore *restore)
{
	struct restore_shared *shared = restore->shared;

	if (!atomic_exchange(&shared->failure_taken, 1))
		shared->failure = restore->failure;
	atomic_store(&shared->aborted, 1);
	for (int i = 0; i < BARRIER_COUNT; i++) {
		atomic_store(&shared->barriers[i].open, 1);
		futex_wake_all(&shared->barriers[i].open);
	}
	for (int kind = 0; kind < SHARED_SLOT_KINDS; kind++)
		for (size_t i = 0; i < restore->file_count; i++) {
			atomic_store(&shared->slots[kind][i].ready, 2);
			futex_wake_all(&shared->slots[kind][i].ready);
		}
}

/* Without criu nobody would ever end the processes that wait: they end themselves. */
static void wait_while_criu_lives(const struct restore_shared *shared, _Atomic uint32_t *word, uint32_t seen)
{
	const struct timespec interval = {.tv_nsec = ALIVE_INTERVAL_NS};

	if (futex_wait(word, seen, &interval) && kill(shared->criu, 0) < 0 && errno == ESRCH)
		_exit(1);
}

bool shared_is_needed(const struct restore *restore, enum restore_barrier barrier)
{
	return restore->shared->barriers[barrier].expected;
}

int shared_wait(struct restore *restore, enum restore_barrier barrier)
{
	struct restore_shared *shared = restore->shared;
	_Atomic uint32_t *open = &shared->barriers[barrier].open;

	if (!shared_is_needed(restore, barrier))
		return atomic_load(&shared->aborted) ? -ECANCELED : 0;
	if (atomic_fetch_add(&shared->barriers[barrier].arrived, 1) + 1 == shared->barriers[barrier].expected) {
		atomic_store(open, 1);
		futex_wake_all(open);
	}
	while (!atomic_load(open))
		wait_while_criu_lives(shared, open, 0);
	return atomic_load(&shared->aborted) ? -ECANCELED : 0;
}

int shared_watch(struct restore *restore, enum restore_barrier barrier, int (*alive)(struct restore *restore))
{
	struct restore_shared *shared = restore->shared;
	_Atomic uint32_t *open = &shared->barriers[barrier].open;
	const struct timespec interval = {.tv_nsec = WATCH_INTERVAL_NS};

	while (!atomic_load(open)) {
		if (!alive) {
			wait_while_criu_lives(shared, open, 0);
			continue;
		}
		futex_wait(open, 0, &interval);
		int error = alive(restore);
		if (error < 0)
			return error;
	}
	return atomic_load(&shared->aborted) ? -ECANCELED : 0;
}

pid_t shared_claim(struct restore *restore, uint32_t slot)
{
	uint32_t nobody = 0;

	if (atomic_compare_exchange_strong(&restore->shared->slots[SHARED_FILE][slot].opener, &nobody, getpid()))
		return 0;
	return nobody;
}

bool shared_is_published(const struct restore *restore, enum shared_slot_kind kind, uint32_t slot)
{
	return atomic_load(&restore->shared->slots[kind][slot].ready);
}

void shared_publish(struct restore *restore, enum shared_slot_kind kind, uint32_t slot, int number)
{
	struct shared_slot *place = &restore->shared->slots[kind][slot];

	place->pid = getpid();
	place->number = number;
	atomic_store(&place->ready, 1);
	futex_wake_all(&place->ready);
}

int shared_await(struct restore *restore, enum shared_slot_kind kind, uint32_t slot, pid_t *ret_pid, int *ret_number)
{
	struct shared_slot *place = &restore->shared->slots[kind][slot];

	while (!atomic_load(&place->ready))
		wait_while_criu_lives(restore->shared, &place->ready, 0);
	if (atomic_load(&restore->shared->aborted))
		return -ECANCELED;
	*ret_pid = place->pid;
	*ret_number = place->number;
	return 0;
}

void restore_lock(struct restore *restore)
{
	_Atomic uint32_t *lock = &restore->shared->lock;
	uint32_t free_word = 0;

	/* 0 free, 1 taken, 2 taken with waiters */
	while (!atomic_compare_exchange_strong(lock, &free_word, 1)) {
		if (free_word == 2 || atomic_exchange(lock, 2))
			futex_wait(lock, 2, NULL);
		else
			return;
		free_word = 0;
	}
}

void restore_unlock(struct restore *restore)
{
	if (atomic_exchange(&restore->shared->lock, 0) == 2)
		futex_wake_all(&restore->shared->lock);
}
