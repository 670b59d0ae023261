/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void copy_text(char *to, size_t size, const char *from)
{
	snprintf(to, size, "%s", from ? from : "");
}

static int record(struct failure *failure, int error, const char *code, const char *object, const char *hint,
		  const char *cause_format, va_list arguments)
{
	error = abs(error);
	if (!error)
		error = EINVAL;
	if (failure_is_set(failure))
		return -failure->error;
	failure->error = error;
	copy_text(failure->code, sizeof(failure->code), code);
	copy_text(failure->object, sizeof(failure->object), object);
	copy_text(failure->hint, sizeof(failure->hint), hint);
	vsnprintf(failure->cause, sizeof(failure->cause), cause_format, arguments);
	return -error;
}

int fail(struct failure *failure, int error, const char *code, const char *object, const char *hint,
	 const char *cause_format, ...)
{
	va_list arguments;

	va_start(arguments, cause_format);
	error = record(failure, error, code, object, hint, cause_format, arguments);
	va_end(arguments);
	return error;
}

int fail_errno(struct failure *failure, int error, const char *code, const char *object, const char *hint,
	       const char *cause_format, ...)
{
	bool first = !failure_is_set(failure);
	va_list arguments;

	va_start(arguments, cause_format);
	int result = record(failure, error, code, object, hint, cause_format, arguments);
	va_end(arguments);
	if (first) {
		size_t used = strlen(failure->cause);
		snprintf(failure->cause + used, sizeof(failure->cause) - used, ": %s", strerror(abs(error)));
	}
	return result;
}

int fail_in(struct failure *failure, const char *context_format, ...)
{
	char context[160], joined[sizeof(failure->object)];
	va_list arguments;

	if (!failure_is_set(failure))
		return 0;
	va_start(arguments, context_format);
	vsnprintf(context, sizeof(context), context_format, arguments);
	va_end(arguments);
	int length =
		snprintf(joined, sizeof(joined), "%s%s%s", context, failure->object[0] ? ": " : "", failure->object);
	if (length >= (int)sizeof(joined))
		memcpy(joined + sizeof(joined) - 4, "...", 4);
	memcpy(failure->object, joined, sizeof(joined));
	return -failure->error;
}

char *failure_line(const struct failure *failure, char *buffer, size_t size)
{
	snprintf(buffer, size, "%s%s%s%s%s", failure->object, failure->object[0] ? ": " : "", failure->cause,
		 failure->hint[0] ? "; " : "", failure->hint);
	/* Names come from the target: no escape sequence of theirs may reach a terminal or break the line. */
	for (char *c = buffer; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return buffer;
}

void failure_clear(struct failure *failure)
{
	memset(failure, 0, sizeof(*failure));
}
