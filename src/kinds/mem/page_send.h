/* SPDX-License-Identifier: Apache-2.0 */
/* The pages of the tasks into a page sink (model/page_sink.h) instead of files. */
#pragma once

#include "kinds/mem/memory.h"

/* The flags of a run in the pagemap image. */
uint32_t page_run_flags(const struct page_run *run);
/* One task after the other, in order. Returns 0 or a failure. */
int page_send_in_order(struct dump *dump);
/* For sinks without order: opens the task's space and tells the sink its entries. Returns 0 or a failure. */
int page_send_open(struct dump *dump, struct dump_task *task);
/* Closes the space. Returns 0 or a failure. */
int page_send_close(struct dump *dump, struct dump_task *task);
/* Reports what a call of the sink returned. Returns @error. */
int page_send_failed(struct dump *dump, int error);
