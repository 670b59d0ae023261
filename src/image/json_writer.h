/* SPDX-License-Identifier: Apache-2.0 */
/* JSON text as it is made: the caller opens and closes objects and arrays in the right order. Private to src/image. */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json_writer {
	FILE *out;
	bool pretty;
	int depth;
	bool empty;     /* nothing stands yet in the innermost object or array */
	bool after_key; /* a value follows on the same line */
};

/* @bracket is '{' or '['. */
void json_open(struct json_writer *writer, char bracket);
/* @bracket is '}' or ']'. */
void json_close(struct json_writer *writer, char bracket);
void json_key(struct json_writer *writer, const char *key);
/* Text in UTF-8; bytes that are not UTF-8 become \udc80 to \udcff. */
void json_text(struct json_writer *writer, const char *text);
void json_unsigned(struct json_writer *writer, uint64_t value);
void json_signed(struct json_writer *writer, int64_t value);
void json_bool(struct json_writer *writer, bool value);
void json_double(struct json_writer *writer, double value);

/* The bytes of one value of the field in the arrays of protobuf-c. */
size_t json_element_bytes(const ProtobufCFieldDescriptor *field);
