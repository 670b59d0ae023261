/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/option_values.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"

int parse_number(const char *text, uint64_t maximum, uint64_t *ret_number)
{
	uint64_t number = 0;

	if (!*text)
		return -EINVAL;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -EINVAL;
		if (__builtin_mul_overflow(number, (uint64_t)10, &number) ||
		    __builtin_add_overflow(number, (uint64_t)(*text - '0'), &number) || number > maximum)
			return -EINVAL;
	}
	*ret_number = number;
	return 0;
}

int parse_size(const char *text, uint64_t *ret_bytes)
{
	static const char suffixes[] = "KMGT";
	size_t length = strlen(text);
	unsigned shift = 0;
	uint64_t number;
	const char *suffix = length ? strchr(suffixes, text[length - 1]) : NULL;

	if (suffix && length) {
		shift = 10 * (unsigned)(suffix - suffixes + 1);
		length--;
	}
	_cleanup_free_ char *digits = strndup(text, length);
	if (!digits || parse_number(digits, UINT64_MAX >> shift, &number) < 0)
		return -EINVAL;
	*ret_bytes = number << shift;
	return 0;
}

static int bad_value(const struct option_row *row, const char *value, const char *expected, struct failure *failure)
{
	char object[80];

	snprintf(object, sizeof(object), "--%s", row->name);
	return fail(failure, EINVAL, "option-value", object, expected, "\"%s\" is not a valid value", value);
}

OPTION_STORE(flag)
{
	*(bool *)field = !value || strcmp(value, "no");
	return 0;
}

OPTION_STORE(text)
{
	if (!*value)
		return bad_value(row, value, "give a value that is not empty", failure);
	*(const char **)field = value;
	return 0;
}

OPTION_STORE(list)
{
	struct text_list *list = field;

	if (!*value)
		return bad_value(row, value, "give a value that is not empty", failure);
	ARRAY_GROW(list->items, list->count, list->capacity);
	list->items[list->count++] = (char *)value;
	return 0;
}

OPTION_STORE(pid)
{
	uint64_t number;

	if (parse_number(value, INT_MAX, &number) < 0 || !number)
		return bad_value(row, value, "give a pid, a number from 1", failure);
	*(pid_t *)field = (pid_t)number;
	return 0;
}

OPTION_STORE(seconds)
{
	uint64_t number;

	if (parse_number(value, INT_MAX / 1000, &number) < 0)
		return bad_value(row, value, "give whole seconds, 0 for no limit", failure);
	*(unsigned *)field = (unsigned)number;
	return 0;
}

OPTION_STORE(size)
{
	if (parse_size(value, field) < 0)
		return bad_value(row, value, "give bytes, or a number with suffix K, M or G", failure);
	return 0;
}

OPTION_STORE(verbosity)
{
	int *level = field;
	uint64_t number;

	if (!value) {
		(*level)++;
	} else if (value[strspn(value, "v")] == '\0') {
		/* "-vvv" reaches us as -v with the value "vv". */
		*level += (int)strlen(value) + 1;
	} else if (parse_number(value, 1000, &number) == 0) {
		*level = (int)number;
	} else {
		return bad_value(row, value, "give a level from 0 to 4", failure);
	}
	if (*level > LOG_LEVEL_DEBUG)
		*level = LOG_LEVEL_DEBUG;
	return 0;
}

OPTION_STORE(close_fd)
{
	uint64_t number;

	if (parse_number(value, INT_MAX, &number) < 0)
		return bad_value(row, value, "give the number of a descriptor", failure);
	ARRAY_GROW(options->close_fds, options->close_fd_count, options->close_fd_capacity);
	options->close_fds[options->close_fd_count++] = (int)number;
	return 0;
}

OPTION_STORE(port)
{
	uint64_t number;

	if (parse_number(value, UINT16_MAX, &number) < 0)
		return bad_value(row, value, "give a port, a number up to 65535", failure);
	*(unsigned *)field = (unsigned)number;
	return 0;
}

OPTION_STORE(descriptor)
{
	uint64_t number;

	if (parse_number(value, INT_MAX, &number) < 0)
		return bad_value(row, value, "give the number of a descriptor", failure);
	*(int *)field = (int)number;
	return 0;
}

OPTION_STORE(network_lock)
{
	/* One rule set through libnftables does what CRIU does with iptables. */
	if (!strcmp(value, "nftables") || !strcmp(value, "iptables"))
		*(enum network_lock_method *)field = NETWORK_LOCK_NFTABLES;
	else if (!strcmp(value, "skip"))
		*(enum network_lock_method *)field = NETWORK_LOCK_SKIP;
	else
		return bad_value(row, value, "use nftables or skip", failure);
	return 0;
}

OPTION_STORE(pre_dump_mode)
{
	if (!strcmp(value, "splice"))
		*(enum pre_dump_mode *)field = PRE_DUMP_SPLICE;
	else if (!strcmp(value, "read"))
		*(enum pre_dump_mode *)field = PRE_DUMP_READ;
	else
		return bad_value(row, value, "use splice or read", failure);
	return 0;
}

OPTION_STORE(format)
{
	if (strcmp(value, "criu") && strcmp(value, "default"))
		return bad_value(row, value, "use criu or default", failure);
	*(bool *)field = !strcmp(value, "criu");
	return 0;
}

/* An option of which only @works is there already. Values that no release knows are refused at once. */
static int store_known(struct options *options, const struct option_row *row, const char *value,
		       const char *const *works, const char *const *later, const char *expected,
		       struct failure *failure)
{
	for (size_t i = 0; works[i]; i++)
		if (!strcmp(value, works[i]))
			return 0;
	for (size_t i = 0; later[i]; i++) {
		if (strcmp(value, later[i]))
			continue;
		if (!options->later) {
			options->later = row;
			options->later_value = value;
		}
		return 0;
	}
	return bad_value(row, value, expected, failure);
}

OPTION_STORE(cgroups)
{
	static const char *const works[] = {"ignore", NULL};
	static const char *const later[] = {"none", "props", "soft", "full", "strict", NULL};

	return store_known(options, row, value ?: "soft", works, later, "in this release only ignore is known",
			   failure);
}

OPTION_STORE(cpu_cap)
{
	static const char *const works[] = {"fpu", NULL};
	static const char *const later[] = {"none", "cpu", "ins", "all", "image", NULL};

	return store_known(options, row, value ?: "all", works, later, "in this release only fpu is known", failure);
}

OPTION_STORE(file_validation)
{
	static const char *const works[] = {"filesize", NULL};
	static const char *const later[] = {"buildid", NULL};

	return store_known(options, row, value, works, later, "use filesize", failure);
}

OPTION_STORE(milliseconds)
{
	uint64_t number;

	if (parse_number(value, INT_MAX / 1000, &number) < 0 || !number)
		return bad_value(row, value, "give whole milliseconds, at least 1", failure);
	*(unsigned *)field = (unsigned)number;
	return 0;
}

OPTION_STORE(link_seconds)
{
	uint64_t number;

	if (parse_number(value, 3600, &number) < 0 || !number)
		return bad_value(row, value, "give whole seconds, from 1 to 3600", failure);
	*(unsigned *)field = (unsigned)number;
	return 0;
}

OPTION_STORE(connections)
{
	uint64_t number;

	if (parse_number(value, 16, &number) < 0 || !number)
		return bad_value(row, value, "give a number from 1 to 16", failure);
	*(unsigned *)field = (unsigned)number;
	return 0;
}

static int store_word(const struct option_row *row, const char *const *words, const char *value, const char *expected,
		      int *field, struct failure *failure)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(words[i], value)) {
			*field = i;
			return 0;
		}
	return bad_value(row, value, expected, failure);
}

OPTION_STORE(at_timeout)
{
	static const char *const words[] = {"cancel", "stop-and-copy", "post-copy", NULL}; /* enum migrate_at_timeout */

	return store_word(row, words, value, "give cancel, stop-and-copy or post-copy", field, failure);
}

OPTION_STORE(compress)
{
	static const char *const words[] = {"auto", "none", "lz4", "zstd", NULL}; /* enum compress_mode */

	return store_word(row, words, value, "give auto, none, lz4 or zstd", field, failure);
}
