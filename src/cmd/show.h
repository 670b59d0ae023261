/* SPDX-License-Identifier: Apache-2.0 */
/* `criu show`: the images are read into one JSON document, which is printed as it is or drawn for people. */
#pragma once

#include <jansson.h>

#include "fdinfo.pb-c.h"

/* "type", "text" and numbers of one open file as a JSON object, which the caller owns. */
json_t *show_file(const FileEntry *file);

/* Draws the document of show.c on standard output. */
void show_print(const json_t *document);
