/* SPDX-License-Identifier: Apache-2.0 */
/* `criu show` and `crit x`: the images are read into one JSON document, which is printed as it is or for people. */
#pragma once

#include <jansson.h>

#include "base/fail.h"

#include "fdinfo.pb-c.h"

/*
 * Reads what people want to know of the dump in @dirfd: {"format", "tasks": [{"pid", "memory", "files", ...}]}. Returns
 * 0 or a failure; the caller frees the document.
 */
int show_read(int dirfd, struct failure *failure, json_t **ret_document);
/* "type", "text" and numbers of one open file as a JSON object, which the caller owns. */
json_t *show_file(const FileEntry *file);

enum show_part { SHOW_PROCESSES, SHOW_FILES, SHOW_MAPPINGS, SHOW_PAGES };

/* Prints all of a document on standard output: the tree, and memory and files of each task. */
void show_print(const json_t *document);
/* One part of it, for each task. */
void show_print_part(const json_t *document, enum show_part part);
void show_print_json(const json_t *document);
