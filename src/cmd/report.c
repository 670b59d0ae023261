/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/command.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"

struct json_t *report_text(const char *text)
{
	json_t *json = json_string(text);

	if (json)
		return json;
	/* Names come from the target, and a failure may have cut a character in two. */
	_cleanup_free_ char *ascii = xstrdup(text);
	for (char *c = ascii; *c; c++)
		if ((unsigned char)*c >= 0x80)
			*c = '?';
	return json_string(ascii);
}

void report_event(const char *name, const char *format, ...)
{
	json_t *event = json_pack("{s:s}", "event", name);

	if (format) {
		va_list arguments;

		va_start(arguments, format);
		json_t *fields = json_vpack_ex(NULL, 0, format, arguments);
		va_end(arguments);
		if (fields)
			json_object_update(event, fields);
		json_decref(fields);
	}
	json_dumpf(event, stdout, JSON_COMPACT);
	putchar('\n');
	fflush(stdout);
	json_decref(event);
}

/* https://no-color.org, and terminals that would show the sequence as text. */
static bool wants_color(void)
{
	const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");

	return isatty(STDERR_FILENO) && !(no_color && *no_color) && !(terminal && !strcmp(terminal, "dumb"));
}

void report_failure(const struct failure *failure, bool json)
{
	char line[1024];

	failure_line(failure, line, sizeof(line));
	if (json)
		report_event("failure", "{s:i, s:o, s:o, s:o, s:o}", "error", failure->error, "code",
			     report_text(failure->code), "object", report_text(failure->object), "cause",
			     report_text(failure->cause), "hint", report_text(failure->hint));
	if (log_fd() >= 0 && log_fd() != STDERR_FILENO)
		log_error("%s", line);
	if (json)
		return;
	if (wants_color())
		fprintf(stderr, "\033[31mcriu: %s\033[0m\n", line);
	else
		fprintf(stderr, "criu: %s\n", line);
}

char *bytes_text(uint64_t bytes, char *buffer, size_t size)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	size_t unit = 0;

	while (value >= 1024 && unit < ARRAY_SIZE(units) - 1) {
		value /= 1024;
		unit++;
	}
	snprintf(buffer, size, unit && value < 10 ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return buffer;
}
