/* SPDX-License-Identifier: Apache-2.0 */
/* The vDSO of a restored task. */
#pragma once

#include "inject/program.h"
#include "kernel/maps.h"
#include "model/restore.h"

/*
 * Adds the calls that take criu's own vDSO (and the pages it reads) out of the way, before anything is unmapped.
 * @own: the mappings of the calling process. *ret_start, *ret_end: where they wait; must not be unmapped (equal: there
 * is nothing to keep). Returns 0 or a failure.
 */
int vdso_plan_leave(struct restore *restore, const struct mappings *own, struct program *program, uint64_t *ret_start,
		    uint64_t *ret_end);
/* Adds the calls that put it where the task expects it. Returns 0 or a failure. */
int vdso_plan_arrive(struct restore *restore, const struct mappings *own, uint64_t waiting, struct program *program);
