/* SPDX-License-Identifier: Apache-2.0 */
/* The vDSO of a restored task. */
#pragma once

#include "inject/program.h"
#include "model/restore.h"

/*
 * Adds the calls that take criu's own vDSO (and the pages it reads) out of the way, before anything is unmapped.
 * *ret_start, *ret_end: where they wait; must not be unmapped (equal: there is nothing to keep). Returns 0 or a
 * failure.
 */
int vdso_plan_leave(struct restore *restore, struct program *program, uint64_t *ret_start, uint64_t *ret_end);
/* Adds the calls that put it where the task expects it. Returns 0 or a failure. */
int vdso_plan_arrive(struct restore *restore, uint64_t waiting, struct program *program);
