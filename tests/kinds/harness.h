/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a test program of a kind looks like:
 *
 *	int main(void)
 *	{
 *		... make the state that shall survive ...
 *		harness_ready();
 *		while (harness_wait_check()) {
 *			CHECK(value == 42, "value is %d", value);
 *			harness_report();
 *		}
 *		return 0;
 *	}
 *
 * The runner (test_kinds.py) dumps and restores the program while it waits in harness_wait_check(), and asks for a
 * check after every step, so a check must be repeatable: it leaves the state as it found it, or makes it again.
 *
 * The program's working directory at the start is its own empty directory. Its standard input is /dev/null, its
 * output a log file there. The runner talks to it through two fifos in it, which are opened before main() at
 * descriptors HARNESS_CONTROL_FD and HARNESS_OUTPUT_FD, so that 3 and up are free.
 *
 * Comment lines in the program tell the runner more; each stands alone on its line:
 *	criu: OPTIONS            more options for every dump and restore
 *	criu-dump: OPTIONS       only for dumps;   criu-restore: OPTIONS, only for restores
 *	netns                    run in a network namespace of its own (lo is up)
 *	in-place                 run once more without any new namespace
 *	same-namespace           never restore into a fresh pid namespace
 *	skip-unless: path PATH   or "command NAME", or "feature NAME" (criu check --feature)
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define HARNESS_CONTROL_FD 900
#define HARNESS_OUTPUT_FD 901

/* The state is made: tells the runner the pid. Call once. */
void harness_ready(void);

/* Waits for the runner. Returns true when a check is asked for, false when the program shall end with status 0. */
bool harness_wait_check(void);

/* Sends the result of the CHECKs since the last report. */
void harness_report(void);

/* Ends the program: this machine cannot run the test. Call before harness_ready(). */
void harness_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* The absolute path of the test's own directory. */
const char *harness_directory(void);

/*
 * Forks a child that lives as long as the test and, for each check, runs check(argument) in itself; its failures
 * are part of the parent's next report once the parent has called harness_check_children(). The child inherits
 * nothing else of the protocol. At most HARNESS_MAX_CHILDREN. Returns the child's pid.
 */
#define HARNESS_MAX_CHILDREN 64
pid_t harness_start_child(void (*check)(void *argument), void *argument);
void harness_check_children(void);

/* Nanoseconds of a clock. */
int64_t harness_clock_ns(int clock);

/* Takes a failure down. Use the macros. */
void harness_fail(const char *file, int line, const char *condition, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* Setting up failed: reports and ends the program. */
void harness_setup_failed(const char *file, int line, const char *expression) __attribute__((noreturn));

/* CHECK(condition) or CHECK(condition, "format", ...): a failed one is reported and the checks go on. */
#define CHECK(condition, ...)                                                          \
	do {                                                                           \
		if (!(condition))                                                      \
			harness_fail(__FILE__, __LINE__, #condition, " " __VA_ARGS__); \
	} while (0)

/* For setting up: the value of @expression, which must not be negative (nor MAP_FAILED). */
#define MUST(expression)                                                       \
	({                                                                     \
		__auto_type must_value = (expression);                         \
		if ((intptr_t)must_value < 0 && (intptr_t)must_value >= -4095) \
			harness_setup_failed(__FILE__, __LINE__, #expression); \
		must_value;                                                    \
	})
/* For calls that return an errno value (pthread_*), 0 = good. */
#define MUST_ZERO(expression)                                                  \
	do {                                                                   \
		int must_error = (expression);                                 \
		if (must_error) {                                              \
			errno = must_error;                                    \
			harness_setup_failed(__FILE__, __LINE__, #expression); \
		}                                                              \
	} while (0)
