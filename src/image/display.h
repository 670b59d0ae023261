/* SPDX-License-Identifier: Apache-2.0 */
/* How fields are shown to people: hexadecimal, names of bits, addresses. Driven by display.def, without messages. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum display_form {
	DISPLAY_PLAIN,
	DISPLAY_HEX,         /* every number below the field */
	DISPLAY_ADDRESS,     /* repeated: one word of IPv4 or four of IPv6 */
	DISPLAY_DEVICE,      /* major << 20 | minor, as in the kernel */
	DISPLAY_USER_DEVICE, /* the encoding of stat() */
	DISPLAY_QUOTED,      /* bytes as quoted-printable text */
	DISPLAY_FLAGS,
	DISPLAY_NAMES,
};

struct display_name {
	uint64_t value;
	const char *word; /* NULL ends a table */
};

struct display {
	const char *message;
	const char *field;
	enum display_form form;
	const struct display_name *names;
};

/* Never NULL: what is not in the table is plain. */
const struct display *display_of(const char *message, const char *field);

/* The number as text into @buffer of @size bytes. Returns @buffer, or NULL if it is shown as a number. */
char *display_number(const struct display *display, uint64_t value, char *buffer, size_t size);
/* The way back. Returns 0 or -EINVAL. */
int display_parse(const struct display *display, const char *text, uint64_t *ret_value);

/* The words of an address as text into @buffer. Returns @buffer, or NULL if the count is not that of an address. */
char *display_address(const uint32_t *words, size_t count, char *buffer, size_t size);
/* The way back: fills up to 4 words. Returns their count or -EINVAL. */
int display_parse_address(const char *text, uint32_t words[4]);

/* Base64 in lines of 76 characters, each with a newline. Returns new text, which the caller frees. */
char *base64_encode(const void *data, size_t size);
/* Returns 0 or -EINVAL. The caller frees *ret_data, which is never NULL. */
int base64_decode(const char *text, uint8_t **ret_data, size_t *ret_size);

/* Quoted-printable text (RFC 2045) in lines of up to 76 characters. Returns new text, which the caller frees. */
char *quoted_encode(const uint8_t *data, size_t size);
int quoted_decode(const char *text, uint8_t **ret_data, size_t *ret_size);
