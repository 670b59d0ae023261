/* SPDX-License-Identifier: Apache-2.0 */
/* The clock that durations are measured with: CLOCK_MONOTONIC of criu's own time namespace. */
#pragma once

#include <stdint.h>

uint64_t clock_now_ns(void);
uint64_t clock_now_us(void);
/* Signed, for ends of waits: negative is no end. */
int64_t clock_now_ms(void);
