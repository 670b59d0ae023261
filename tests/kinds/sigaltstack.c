/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Alternate signal stacks: set, set with SS_AUTODISARM, disabled, and one that a handler runs on while the program is
 * checkpointed.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif
#define STACK_BYTES 65536

struct owner {
	const char *name;
	unsigned flags;
	bool inside_handler;
	char *stack;
	sem_t check, checked;
};

static struct owner owners[] = {
	{"plain", 0},
	{"auto-disarm", SS_AUTODISARM},
	{"disabled", SS_DISABLE},
	{"in a handler", 0, true},
};
static _Thread_local struct owner *self;
static _Thread_local volatile int handled;

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore) < 0)
		;
}

static bool is_on_stack(const void *address)
{
	return (const char *)address >= self->stack && (const char *)address < self->stack + STACK_BYTES;
}

static void short_handler(int signal)
{
	char here;

	handled = is_on_stack(&here) ? 2 : 1;
}

static void check_stack(void)
{
	stack_t stack;
	int expected = self->flags | (self->inside_handler ? SS_ONSTACK : 0);

	CHECK(!sigaltstack(NULL, &stack), "%m");
	CHECK((unsigned)stack.ss_flags == (unsigned)expected, "%s: flags %x", self->name, stack.ss_flags);
	if (!(self->flags & SS_DISABLE))
		CHECK(stack.ss_sp == self->stack && stack.ss_size == STACK_BYTES, "%s: %p", self->name, stack.ss_sp);
	handled = 0;
	pthread_kill(pthread_self(), SIGUSR1);
	CHECK(handled == (self->flags & SS_DISABLE ? 1 : 2), "%s: %d", self->name, handled);
}

/* Stays on the alternate stack for the life of the thread. */
static void long_handler(int signal)
{
	sem_post(&self->checked);
	for (;;) {
		wait_for(&self->check);
		check_stack();
		sem_post(&self->checked);
	}
}

static void *own(void *argument)
{
	self = argument;
	stack_t stack = {.ss_sp = self->stack, .ss_size = STACK_BYTES, .ss_flags = self->flags};

	MUST(sigaltstack(&stack, NULL));
	if (self->inside_handler)
		pthread_kill(pthread_self(), SIGUSR2);
	sem_post(&self->checked);
	for (;;) {
		wait_for(&self->check);
		check_stack();
		sem_post(&self->checked);
	}
	return NULL;
}

int main(void)
{
	static char stacks[4][STACK_BYTES];
	struct sigaction action = {.sa_handler = short_handler, .sa_flags = SA_ONSTACK};
	pthread_t thread;

	MUST(sigaction(SIGUSR1, &action, NULL));
	action.sa_handler = long_handler;
	MUST(sigaction(SIGUSR2, &action, NULL));
	for (size_t i = 0; i < 4; i++) {
		owners[i].stack = stacks[i];
		sem_init(&owners[i].check, 0, 0);
		sem_init(&owners[i].checked, 0, 0);
		MUST_ZERO(pthread_create(&thread, NULL, own, &owners[i]));
		wait_for(&owners[i].checked);
	}
	harness_ready();
	while (harness_wait_check()) {
		for (size_t i = 0; i < 4; i++) {
			sem_post(&owners[i].check);
			wait_for(&owners[i].checked);
		}
		harness_report();
	}
	return 0;
}
