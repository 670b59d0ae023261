/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers and bytes of the images as people read them, and back. */
#include "image/display.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/fd.h"

#define NAMES(set, ...) static const struct display_name set[] = {__VA_ARGS__, {0, NULL}};
#include "image/display_names.def"
#undef NAMES

static const struct display displays[] = {
#define DISPLAY(message, field, form, names) {#message, #field, DISPLAY_##form, names},
#include "image/display.def"
#undef DISPLAY
};

const struct display *display_of(const char *message, const char *field)
{
	static const struct display plain = {.form = DISPLAY_PLAIN};

	for (size_t i = 0; i < ARRAY_SIZE(displays); i++)
		if (!strcmp(displays[i].message, message) && !strcmp(displays[i].field, field))
			return &displays[i];
	return &plain;
}

static char *show_flags(const struct display_name *names, uint64_t value, char *buffer, size_t size)
{
	size_t used = 0;

	buffer[0] = '\0';
	for (; names->word; names++)
		if (value & names->value) {
			used += snprintf(buffer + used, size - used, "%s%s", used ? " | " : "", names->word);
			value &= ~names->value;
		}
	if (value)
		snprintf(buffer + used, size - used, "%s0x%" PRIx64, used ? " | " : "", value);
	return buffer;
}

char *display_number(const struct display *display, uint64_t value, char *buffer, size_t size)
{
	switch (display->form) {
	case DISPLAY_HEX:
		snprintf(buffer, size, "0x%" PRIx64, value);
		return buffer;
	case DISPLAY_DEVICE:
		snprintf(buffer, size, "%" PRIu64 ":%" PRIu64, value >> 20, value & 0xfffff);
		return buffer;
	case DISPLAY_USER_DEVICE:
		snprintf(buffer, size, "%u:%u", major(value), minor(value));
		return buffer;
	case DISPLAY_FLAGS:
		return show_flags(display->names, value, buffer, size);
	case DISPLAY_NAMES:
		for (const struct display_name *name = display->names; name->word; name++)
			if (name->value == value) {
				snprintf(buffer, size, "%s", name->word);
				return buffer;
			}
		return NULL;
	default:
		return NULL;
	}
}

static int parse_number(const char *text, size_t length, uint64_t *ret_value)
{
	char copy[32], *end;

	if (!length || length >= sizeof(copy) || text[0] < '0' || text[0] > '9')
		return -EINVAL;
	memcpy(copy, text, length);
	copy[length] = '\0';
	errno = 0;
	*ret_value = strtoull(copy, &end, 0);
	return errno || *end ? -EINVAL : 0;
}

static int parse_word(const struct display_name *names, const char *text, size_t length, uint64_t *ret_value)
{
	for (; names && names->word; names++)
		if (strlen(names->word) == length && !memcmp(names->word, text, length)) {
			*ret_value = names->value;
			return 0;
		}
	return parse_number(text, length, ret_value);
}

static int parse_flags(const struct display_name *names, const char *text, uint64_t *ret_value)
{
	uint64_t value = 0, bit;

	while (*text) {
		size_t length = strcspn(text, " |");
		if (length && parse_word(names, text, length, &bit) < 0)
			return -EINVAL;
		if (length)
			value |= bit;
		text += length;
		text += strspn(text, " |");
	}
	*ret_value = value;
	return 0;
}

static int parse_device(const struct display *display, const char *text, uint64_t *ret_value)
{
	const char *colon = strchr(text, ':');
	uint64_t high, low;

	if (!colon || parse_number(text, colon - text, &high) < 0 ||
	    parse_number(colon + 1, strlen(colon + 1), &low) < 0)
		return -EINVAL;
	if (high > 0xffffffff || low > 0xffffffff)
		return -EINVAL;
	*ret_value = display->form == DISPLAY_DEVICE ? high << 20 | low : makedev(high, low);
	return 0;
}

int display_parse(const struct display *display, const char *text, uint64_t *ret_value)
{
	if (display->form == DISPLAY_FLAGS)
		return parse_flags(display->names, text, ret_value);
	if (display->form == DISPLAY_DEVICE || display->form == DISPLAY_USER_DEVICE)
		return parse_device(display, text, ret_value);
	return parse_word(display->names, text, strlen(text), ret_value);
}

char *display_address(const uint32_t *words, size_t count, char *buffer, size_t size)
{
	if (count != 1 && count != 4)
		return NULL;
	return (char *)inet_ntop(count == 1 ? AF_INET : AF_INET6, words, buffer, size);
}

int display_parse_address(const char *text, uint32_t words[4])
{
	if (inet_pton(AF_INET, text, words) == 1)
		return 1;
	return inet_pton(AF_INET6, text, words) == 1 ? 4 : -EINVAL;
}

#define BASE64_LINE_BYTES 57 /* 76 characters */
static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const void *data, size_t size)
{
	const uint8_t *bytes = data;
	char *text = xcalloc(size / 3 + 2, 4 + 1), *to = text;

	for (size_t i = 0; i < size; i += 3) {
		size_t left = size - i;
		uint32_t group = bytes[i] << 16 | (left > 1 ? bytes[i + 1] << 8 : 0) | (left > 2 ? bytes[i + 2] : 0);
		*to++ = base64_digits[group >> 18];
		*to++ = base64_digits[group >> 12 & 63];
		*to++ = left > 1 ? base64_digits[group >> 6 & 63] : '=';
		*to++ = left > 2 ? base64_digits[group & 63] : '=';
		if (left <= 3 || (i + 3) % BASE64_LINE_BYTES == 0)
			*to++ = '\n';
	}
	*to = '\0';
	return text;
}

int base64_decode(const char *text, uint8_t **ret_data, size_t *ret_size)
{
	uint8_t *data = xcalloc(strlen(text) / 4 * 3 + 3, 1);
	size_t size = 0, digits = 0, fill = 0;
	uint32_t group = 0;

	for (; *text; text++) {
		if (*text == '\n')
			continue;
		const char *digit = strchr(base64_digits, *text);
		if (*text == '=' ? digits % 4 < 2 : !digit || fill) {
			free(data);
			return -EINVAL;
		}
		fill += *text == '=';
		group = group << 6 | (*text == '=' ? 0 : digit - base64_digits);
		if (++digits % 4)
			continue;
		for (size_t i = 0; i < 3 - fill; i++)
			data[size++] = group >> (16 - 8 * i);
	}
	if (digits % 4 || fill > 2) {
		free(data);
		return -EINVAL;
	}
	*ret_data = data;
	*ret_size = size;
	return 0;
}

#define QUOTED_LINE_LIMIT 76

static bool needs_quotes(const uint8_t *data, size_t size, size_t i, size_t column)
{
	uint8_t c = data[i];
	bool line_ends = i + 1 == size || data[i + 1] == '\n';

	if (c > '~' || c == '=')
		return true;
	if (c == '.' && !column)
		return line_ends || !data[i + 1] || data[i + 1] == '\r';
	if (c == ' ' || c == '\t')
		return line_ends;
	return c < ' ' && c != '\r' && c != '\n';
}

char *quoted_encode(const uint8_t *data, size_t size)
{
	char *text = xcalloc(size + 1, 6), *to = text;
	size_t column = 0;

	for (size_t i = 0; i < size; i++) {
		bool quoted = needs_quotes(data, size, i, column);
		if (!quoted && data[i] == '\n') {
			*to++ = '\n';
			column = 0;
			continue;
		}
		bool more = quoted || (i + 1 < size && data[i + 1] != '\n');
		if (more && column + (quoted ? 3 : 1) >= QUOTED_LINE_LIMIT) {
			*to++ = '=';
			*to++ = '\n';
			column = 0;
		}
		column += quoted ? 3 : 1;
		if (quoted)
			to += sprintf(to, "=%02X", data[i]);
		else
			*to++ = data[i];
	}
	*to = '\0';
	return text;
}

int quoted_decode(const char *text, uint8_t **ret_data, size_t *ret_size)
{
	uint8_t *data = xcalloc(strlen(text) + 1, 1);
	size_t size = 0;

	for (; *text; text++) {
		unsigned int value;
		if (*text != '=') {
			data[size++] = *text;
		} else if (text[1] == '\n') {
			text++;
		} else if (sscanf(text + 1, "%2x", &value) == 1 && strspn(text + 1, "0123456789ABCDEFabcdef") >= 2) {
			data[size++] = value;
			text += 2;
		} else {
			free(data);
			return -EINVAL;
		}
	}
	*ret_data = data;
	*ret_size = size;
	return 0;
}
