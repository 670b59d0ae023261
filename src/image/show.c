/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A dump for people. All images that matter are read into one tree of JSON first (show_read.c); the text is made of
 * that tree, so both forms say the same and a damaged image is told before the first line of output.
 */
#include "image/show_read.h"

#include <inttypes.h>
#include <string.h>

#include "image/show.h"

static const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

static uint64_t number_of(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

/* Names in images come from the dumped processes: no escape sequence of theirs may reach a terminal. */
static void put_name(FILE *out, const char *name)
{
	for (; *name; name++)
		fputc((unsigned char)*name < ' ' || *name == 0x7f ? '?' : *name, out);
}

static void put_bytes(FILE *out, uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	double value = bytes;
	unsigned int unit = 0;

	while (value >= 1024 && unit < 4) {
		value /= 1024;
		unit++;
	}
	fprintf(out, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

/* How many ancestors of the process are in the tree. Parents stand before their children, so the walk ends. */
static int level_of(const json_t *processes, size_t index)
{
	uint64_t parent = number_of(json_array_get(processes, index), "ppid");
	int level = 0;

	while (index-- > 0) {
		const json_t *other = json_array_get(processes, index);
		if (number_of(other, "pid") != parent)
			continue;
		level++;
		parent = number_of(other, "ppid");
	}
	return level;
}

static void put_process(FILE *out, const json_t *process, int level)
{
	fprintf(out, "%7" PRIu64 " %7" PRIu64 " %7" PRIu64 " %7" PRIu64 " %-8s %*s", number_of(process, "pid"),
		number_of(process, "ppid"), number_of(process, "pgid"), number_of(process, "sid"),
		text_of(process, "state"), 2 * level, "");
	put_name(out, text_of(process, "comm"));
	size_t threads = json_array_size(json_object_get(process, "threads"));
	if (threads > 1)
		fprintf(out, " (%zu threads)", threads);
	fputc('\n', out);
}

static void put_processes(FILE *out, const json_t *processes)
{
	fprintf(out, "%7s %7s %7s %7s %-8s %s\n", "PID", "PPID", "PGID", "SID", "STATE", "COMMAND");
	for (size_t i = 0; i < json_array_size(processes); i++)
		put_process(out, json_array_get(processes, i), level_of(processes, i));
}

static void put_heading(FILE *out, const json_t *process)
{
	fprintf(out, "%" PRIu64 " (", number_of(process, "pid"));
	put_name(out, text_of(process, "comm"));
	fputs(")\n", out);
}

static void put_files(FILE *out, const json_t *process)
{
	const json_t *files = json_object_get(process, "files");

	if (!json_array_size(files))
		return;
	put_heading(out, process);
	for (size_t i = 0; i < json_array_size(files); i++) {
		const json_t *file = json_array_get(files, i);
		fprintf(out, "%7" PRIu64 "  %-9s ", number_of(file, "fd"), text_of(file, "type"));
		put_name(out, text_of(file, "description"));
		fputc('\n', out);
	}
}

static void put_mappings(FILE *out, const json_t *process)
{
	const json_t *mappings = json_object_get(process, "mappings");

	if (!json_array_size(mappings))
		return;
	put_heading(out, process);
	for (size_t i = 0; i < json_array_size(mappings); i++) {
		const json_t *mapping = json_array_get(mappings, i);
		fprintf(out, "  %s-%s %s ", text_of(mapping, "start"), text_of(mapping, "end"),
			text_of(mapping, "protection"));
		put_name(out, text_of(mapping, "content"));
		fputc('\n', out);
	}
}

static void put_pages(FILE *out, const json_t *process)
{
	const json_t *memory = json_object_get(process, "memory");

	if (!memory)
		return;
	put_heading(out, process);
	fprintf(out, "  %" PRIu64 " mappings, ", number_of(memory, "mappings"));
	put_bytes(out, number_of(memory, "bytes"));
	fprintf(out, "; pages: %" PRIu64 " stored (", number_of(memory, "pages_present"));
	put_bytes(out, number_of(memory, "stored_bytes"));
	fprintf(out, "), %" PRIu64 " shared with another process, %" PRIu64 " in the parent images\n",
		number_of(memory, "pages_shared"), number_of(memory, "pages_in_parent"));
}

static void put_part(FILE *out, const json_t *processes, enum images_part part)
{
	static void (*const parts[])(FILE *, const json_t *) = {
		[IMAGES_FILES] = put_files,
		[IMAGES_MAPPINGS] = put_mappings,
		[IMAGES_PAGES] = put_pages,
	};

	if (part == IMAGES_PROCESSES)
		put_processes(out, processes);
	else
		for (size_t i = 0; i < json_array_size(processes); i++)
			parts[part](out, json_array_get(processes, i));
}

int images_show_part(int dirfd, enum images_part part, FILE *out, struct failure *failure)
{
	json_t *images = NULL;
	int error = images_read(dirfd, failure, &images);

	if (error)
		return error;
	put_part(out, json_object_get(images, "processes"), part);
	json_decref(images);
	return 0;
}

int images_show(int dirfd, bool as_json, FILE *out, struct failure *failure)
{
	json_t *images = NULL;
	int error = images_read(dirfd, failure, &images);

	if (error)
		return error;
	if (as_json) {
		json_dumpf(images, out, JSON_ENSURE_ASCII);
		fputc('\n', out);
	} else {
		const json_t *processes = json_object_get(images, "processes");
		put_part(out, processes, IMAGES_PROCESSES);
		fputs("\nMemory\n", out);
		put_part(out, processes, IMAGES_PAGES);
		fputs("\nFiles\n", out);
		put_part(out, processes, IMAGES_FILES);
	}
	json_decref(images);
	return 0;
}
