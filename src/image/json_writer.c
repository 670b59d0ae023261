/* SPDX-License-Identifier: Apache-2.0 */
/* The layout is that of Python's json module, byte for byte: tools and people compare decoded images as text. */
#include "image/json_writer.h"

#include <inttypes.h>

static void new_line(struct json_writer *writer)
{
	if (!writer->pretty)
		return;
	fprintf(writer->out, "\n%*s", 4 * writer->depth, "");
}

static void before_value(struct json_writer *writer)
{
	if (writer->after_key) {
		writer->after_key = false;
		return;
	}
	if (!writer->empty)
		fputs(writer->pretty ? "," : ", ", writer->out);
	if (writer->depth)
		new_line(writer);
	writer->empty = false;
}

void json_open(struct json_writer *writer, char bracket)
{
	if (writer->depth || writer->after_key)
		before_value(writer);
	fputc(bracket, writer->out);
	writer->depth++;
	writer->empty = true;
}

void json_close(struct json_writer *writer, char bracket)
{
	writer->depth--;
	if (!writer->empty)
		new_line(writer);
	fputc(bracket, writer->out);
	writer->empty = false;
}

static void put_unit(FILE *out, unsigned int unit)
{
	fprintf(out, "\\u%04x", unit);
}

/* Length of the UTF-8 sequence at @text and its code point; 0 if it is none. */
static int sequence(const unsigned char *text, uint32_t *ret_code)
{
	static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	int length = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
	uint32_t code = text[0] & (0xff >> (length + 1));

	if (text[0] < 0xc2 || text[0] > 0xf4)
		return 0;
	for (int i = 1; i < length; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (text[i] & 0x3f);
	}
	if (code < smallest[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0;
	*ret_code = code;
	return length;
}

/* One character that cannot stand as it is. Returns the number of bytes that it had. */
static int put_escaped(FILE *out, const unsigned char *text)
{
	static const char plain[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
	uint32_t code;

	for (int i = 0; plain[i]; i++)
		if ((char)*text == plain[i]) {
			fprintf(out, "\\%c", letters[i]);
			return 1;
		}
	if (*text < 0x80) {
		put_unit(out, *text);
		return 1;
	}
	int length = sequence(text, &code);
	if (!length) {
		put_unit(out, 0xdc00 + *text);
		return 1;
	}
	if (code >= 0x10000) {
		put_unit(out, 0xd800 + ((code - 0x10000) >> 10));
		code = 0xdc00 + ((code - 0x10000) & 0x3ff);
	}
	put_unit(out, code);
	return length;
}

static void put_text(FILE *out, const char *text)
{
	const unsigned char *c = (const unsigned char *)text;

	fputc('"', out);
	while (*c) {
		if (*c >= ' ' && *c <= '~' && *c != '"' && *c != '\\')
			fputc(*c++, out);
		else
			c += put_escaped(out, c);
	}
	fputc('"', out);
}

void json_key(struct json_writer *writer, const char *key)
{
	before_value(writer);
	put_text(writer->out, key);
	fputs(": ", writer->out);
	writer->after_key = true;
}

void json_text(struct json_writer *writer, const char *text)
{
	before_value(writer);
	put_text(writer->out, text);
}

void json_unsigned(struct json_writer *writer, uint64_t value)
{
	before_value(writer);
	fprintf(writer->out, "%" PRIu64, value);
}

void json_signed(struct json_writer *writer, int64_t value)
{
	before_value(writer);
	fprintf(writer->out, "%" PRId64, value);
}

void json_bool(struct json_writer *writer, bool value)
{
	before_value(writer);
	fputs(value ? "true" : "false", writer->out);
}

void json_double(struct json_writer *writer, double value)
{
	before_value(writer);
	fprintf(writer->out, "%.17g", value);
}
