/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images as JSON text, {"magic": "CORE", "entries": [...]}, and back, through the reflection of protobuf-c: field
 * names as in the schema, enumerations by name, other numbers as display.def says, payloads as "extra".
 *
 * The text is written and read here rather than as a jansson tree only: numbers of the images have 64 bits without
 * a sign, jansson's have 63.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "image/image.h"

/*
 * Decodes all entries of an image that was just opened to @out. Nothing is known about @out's content after a
 * failure. Payload of a ghost file or shared memory is held in memory once. Returns 0 or a failure.
 */
int image_decode(struct image *image, bool pretty, FILE *out);

/*
 * Reads JSON text for image_encode(): numbers from 2^63 on become strings of their digits.
 * The caller frees *ret_json with json_decref(). Returns 0 or a failure.
 */
int json_read(FILE *in, const char *name, struct failure *failure, json_t **ret_json);
/*
 * The image kind that {"magic": ...} names. @path decides between kinds of the same magic (may be NULL).
 * Returns 0 or a failure.
 */
int json_image_kind(const json_t *json, const char *path, struct failure *failure, enum image_kind *ret_kind);
/* Writes the image that @json describes to @path. Returns 0 or a failure (the file is then incomplete). */
int image_encode(const json_t *json, int dirfd, const char *path, struct failure *failure);
