/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bar on the terminal for what takes longer than a second; shorter work leaves the screen alone. With --json the
 * same reports are events, at most ten a second.
 */
#include "cmd/command.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

enum { BAR_WIDTH = 30 };

static const uint64_t SECOND_NS = 1000000000, REDRAW_NS = 100000000;

static void draw(const struct progress *progress, uint64_t age_ns)
{
	char done[32], total[32], rate[32], bar[BAR_WIDTH + 1];
	uint64_t bytes_per_second = (uint64_t)((double)progress->done_bytes * 1e9 / (double)age_ns);

	bytes_text(progress->done_bytes, done, sizeof(done));
	bytes_text(bytes_per_second, rate, sizeof(rate));
	if (!progress->total_bytes || progress->done_bytes > progress->total_bytes) {
		fprintf(stderr, "\r%-10s %s  %s/s\033[K", progress->stage, done, rate);
		return;
	}
	double share = (double)progress->done_bytes / (double)progress->total_bytes;
	int filled = (int)(share * BAR_WIDTH);
	memset(bar, '.', BAR_WIDTH);
	memset(bar, '#', filled);
	bar[BAR_WIDTH] = '\0';
	uint64_t left = bytes_per_second ? (progress->total_bytes - progress->done_bytes) / bytes_per_second : 0;
	fprintf(stderr, "\r%-10s [%s] %3d %%  %s of %s  %s/s  %" PRIu64 ":%02" PRIu64 " left\033[K", progress->stage,
		bar, (int)(share * 100), done, bytes_text(progress->total_bytes, total, sizeof(total)), rate, left / 60,
		left % 60);
}

/* Returns true when another stage than before reports. */
static bool enter_stage(struct progress_display *display, const char *stage, uint64_t now)
{
	if (!strcmp(display->stage, stage))
		return false;
	progress_end(display);
	snprintf(display->stage, sizeof(display->stage), "%s", stage);
	display->start_ns = now;
	return true;
}

void progress_show(void *context, const struct progress *progress)
{
	struct progress_display *display = context;
	uint64_t now = clock_now_ns();
	bool entered = enter_stage(display, progress->stage, now);

	if (display->json) {
		if (entered)
			report_event("stage", "{s:s}", "stage", progress->stage);
		if (progress->done_bytes && (entered || now - display->drawn_ns >= REDRAW_NS)) {
			report_event("progress", "{s:s, s:I, s:I}", "stage", progress->stage, "done_bytes",
				     (int64_t)progress->done_bytes, "total_bytes", (int64_t)progress->total_bytes);
			display->drawn_ns = now;
		}
		return;
	}
	if (!display->terminal || !progress->done_bytes || now - display->start_ns < SECOND_NS ||
	    now - display->drawn_ns < REDRAW_NS)
		return;
	draw(progress, now - display->start_ns);
	display->drawn_ns = now;
}

void progress_end(struct progress_display *display)
{
	if (display->terminal && display->drawn_ns && !display->json)
		fputs("\r\033[K", stderr);
	display->drawn_ns = 0;
}
