/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static char *skip_blanks(char *text)
{
	while (is_blank(*text))
		text++;
	return text;
}

/*
 * Takes one word off *text and ends it with NUL. Double quotes group, a backslash takes the next character as it is
 * inside of them; # starts a comment at the start of a word. Returns NULL at the end, or with *ret_unclosed set.
 */
static char *next_word(char **text, bool stop_at_equals, char *ret_end, bool *ret_unclosed)
{
	char *from = skip_blanks(*text), *word = from, *to = from;
	bool quoted = false, any = false;

	if (*from == '#')
		*from = '\0';
	for (; *from && (quoted || !(is_blank(*from) || (stop_at_equals && *from == '='))); from++) {
		any = true;
		if (*from == '"') {
			quoted = !quoted;
			continue;
		}
		if (quoted && *from == '\\' && (from[1] == '"' || from[1] == '\\'))
			from++;
		*to++ = *from;
	}
	*ret_unclosed = quoted;
	*ret_end = *from;
	*text = *from ? from + 1 : from;
	*to = '\0';
	return any && !quoted ? word : NULL;
}

static int apply_line(char *line, struct options *options, unsigned verb, struct failure *failure)
{
	bool unclosed;
	char end;
	char *key = next_word(&line, true, &end, &unclosed);

	if (!key && !unclosed && end == '=')
		return fail(failure, EINVAL, "config-syntax", NULL, NULL, "a name is missing before \"=\"");
	if (!key && !unclosed)
		return 0;
	char *value = NULL, *extra = NULL;
	if (key) {
		/* "key = value" is "key=value". */
		line = skip_blanks(line);
		if (end != '=' && *line == '=')
			line++;
		value = next_word(&line, false, &end, &unclosed);
	}
	if (value)
		extra = next_word(&line, false, &end, &unclosed);
	if (unclosed)
		return fail(failure, EINVAL, "config-syntax", NULL, NULL, "a double quote is not closed");
	if (extra)
		return fail(failure, EINVAL, "config-syntax", NULL, "put double quotes around a value with spaces",
			    "\"%s\": one value expected, \"%s\" follows it", key, extra);
	/* People copy options from the command line. */
	if (!strncmp(key, "--", 2))
		key += 2;
	return options_set(options, verb, key, value, failure);
}

int config_parse(char *text, const char *file, struct options *options, unsigned verb, struct failure *failure)
{
	for (unsigned number = 1; text; number++) {
		char *line = strsep(&text, "\n");

		if (apply_line(line, options, verb, failure) < 0)
			return fail_in(failure, "%s, line %u", file, number);
	}
	return 0;
}

/* The text lives as long as the options, which point into it. */
/* A path may name a pipe, which is read to its end, or a device that has none. */
static int read_limited(const char *path, char **ret_text)
{
	enum { LIMIT_BYTES = 1 << 20 };
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	_cleanup_free_ char *text = xcalloc(1, LIMIT_BYTES + 1);
	size_t length = 0;
	ssize_t got = 1;

	if (fd < 0)
		return -errno;
	while (got > 0 && length <= LIMIT_BYTES) {
		got = read(fd, text + length, LIMIT_BYTES + 1 - length);
		if (got < 0)
			return -errno;
		length += (size_t)got;
	}
	if (length > LIMIT_BYTES)
		return -EFBIG;
	text[length] = 0;
	*ret_text = TAKE_POINTER(text);
	return 0;
}

static int read_file(const char *path, bool may_be_missing, struct options *options, unsigned verb,
		     struct failure *failure)
{
	char *text;
	int r = read_limited(path, &text);

	if (may_be_missing && (r == -ENOENT || r == -ENOTDIR))
		return 0;
	if (r < 0)
		return fail_errno(failure, r, "config-read", path, NULL, "the config file cannot be read");
	struct text_list *texts = &options->config_texts;
	ARRAY_GROW(texts->items, texts->count, texts->capacity);
	texts->items[texts->count++] = text;
	return config_parse(text, path, options, verb, failure);
}

int config_read(const struct options *command_line, struct options *options, unsigned verb, struct failure *failure)
{
	const char *home = getenv("HOME"), *file = command_line->config ?: getenv("CRIU_CONFIG_FILE");
	int r;

	if (!command_line->no_default_config) {
		r = read_file("/etc/criu/default.conf", true, options, verb, failure);
		if (r < 0)
			return r;
		if (home && *home) {
			_cleanup_free_ char *path = xasprintf("%s/.criu/default.conf", home);

			/* HOME may be that of somebody else: after su, or in a service. */
			if (faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0 || errno != EACCES)
				r = read_file(path, true, options, verb, failure);
			if (r < 0)
				return r;
		}
	}
	if (!file || !*file)
		return 0;
	return read_file(file, false, options, verb, failure);
}
