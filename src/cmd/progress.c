/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bar on the terminal for what takes longer than a second; shorter work leaves the screen alone. With --json the
 * same reports are events, at most ten a second.
 */
#include "cmd/command.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <unistd.h>

#include "base/clock.h"

enum { STAGE_WIDTH = 10, BAR_WIDTH = 30, USUAL_COLUMNS = 80 };

static const uint64_t SECOND_NS = 1000000000, REDRAW_NS = 100000000;

/* A line that is wider than the terminal would leave its first part behind each time it is drawn again. */
static size_t line_columns(void)
{
	struct winsize window;

	return !ioctl(STDERR_FILENO, TIOCGWINSZ, &window) && window.ws_col ? window.ws_col - 1u : USUAL_COLUMNS - 1u;
}

/* The bar gets what the words leave of the line, or gives way. */
static void draw_bar(const struct progress *progress, double share, const char *words)
{
	size_t columns = line_columns(), others = strlen("[]  ") + STAGE_WIDTH + strlen(words);
	size_t width = columns > others ? MIN(columns - others, (size_t)BAR_WIDTH) : 0;
	char bar[BAR_WIDTH + 1], line[256];
	size_t filled = (size_t)(share * (double)width);

	memset(bar, '.', width);
	memset(bar, '#', filled);
	bar[width] = '\0';
	if (width >= BAR_WIDTH / 5)
		snprintf(line, sizeof(line), "%-*s [%s] %s", STAGE_WIDTH, progress->stage, bar, words);
	else
		snprintf(line, sizeof(line), "%s %s", progress->stage, words);
	fprintf(stderr, "\r%.*s\033[K", (int)MIN(columns, sizeof(line)), line);
}

static void draw(const struct progress *progress, uint64_t age_ns)
{
	char done[32], total[32], rate[32], words[160];
	uint64_t bytes_per_second = (uint64_t)((double)progress->done_bytes * 1e9 / (double)age_ns);

	bytes_text(progress->done_bytes, done, sizeof(done));
	bytes_text(bytes_per_second, rate, sizeof(rate));
	if (!progress->total_bytes || progress->done_bytes > progress->total_bytes) {
		snprintf(words, sizeof(words), "%s %s  %s/s", progress->stage, done, rate);
		fprintf(stderr, "\r%.*s\033[K", (int)MIN(line_columns(), sizeof(words)), words);
		return;
	}
	double share = (double)progress->done_bytes / (double)progress->total_bytes;
	uint64_t left = bytes_per_second ? (progress->total_bytes - progress->done_bytes) / bytes_per_second : 0;
	snprintf(words, sizeof(words), "%3d %%  %s of %s  %s/s  %" PRIu64 ":%02" PRIu64 " left", (int)(share * 100),
		 done, bytes_text(progress->total_bytes, total, sizeof(total)), rate, left / 60, left % 60);
	draw_bar(progress, share, words);
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
