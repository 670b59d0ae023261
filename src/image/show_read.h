/* SPDX-License-Identifier: Apache-2.0 */
/* The reading half of images_show(). Private to src/image. */
#pragma once

#include <jansson.h>

#include "image/image.h"

/* Reads what people want to know of a dump into one object. The caller frees it with json_decref(). */
int images_read(int dirfd, struct failure *failure, json_t **ret_images);
/* The open files of files.img as an object {"<id>": {"type", "description"}}. */
int images_read_files(int dirfd, struct failure *failure, json_t **ret_files);
/* A string of an image, which need not be UTF-8. */
json_t *json_name(const char *text, size_t length);
