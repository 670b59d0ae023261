/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "base/fd.h"
#include "cmd/command.h"
#include "cmd/show.h"

static const char *string(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key)) ?: "";
}

static json_int_t integer(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

/* Names come from the dumped tree: nothing in them may act on the terminal. */
static void print_name(const char *text)
{
	for (; *text; text++)
		putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
}

static void print_task_line(const json_t *task, int depth)
{
	char stored[32], mapped[32];
	const json_t *memory = json_object_get(task, "memory");
	size_t threads = json_array_size(json_object_get(task, "threads"));

	printf("%*s%" JSON_INTEGER_FORMAT " ", 2 * depth + 2, "", integer(task, "pid"));
	print_name(string(task, "name"));
	printf("  %s", string(task, "state"));
	if (threads > 1)
		printf(", %zu threads", threads);
	if (memory)
		printf(", %s mapped, %s of pages",
		       bytes_text((uint64_t)integer(memory, "mapped_bytes"), mapped, sizeof(mapped)),
		       bytes_text((uint64_t)integer(memory, "stored_bytes"), stored, sizeof(stored)));
	putchar('\n');
}

/* Prints the children of @parent, @depth levels below the root. Each task once: images may claim circles. */
static void print_children(const json_t *tasks, json_int_t parent, int depth, bool *printed)
{
	size_t i;
	json_t *task;

	json_array_foreach(tasks, i, task)
	{
		if (integer(task, "parent") != parent || printed[i])
			continue;
		printed[i] = true;
		print_task_line(task, depth);
		print_children(tasks, integer(task, "pid"), depth + 1, printed);
	}
}

static void print_mappings(const json_t *memory)
{
	size_t i;
	json_t *mapping;

	json_array_foreach(json_object_get(memory, "mappings"), i, mapping)
	{
		printf("    %s-%s %s %s ", string(mapping, "start"), string(mapping, "end"),
		       string(mapping, "protection"), string(mapping, "kind"));
		print_name(string(mapping, "file"));
		putchar('\n');
	}
}

static void print_files(const json_t *files)
{
	size_t i;
	json_t *file;

	json_array_foreach(files, i, file)
	{
		printf("    fd %-4" JSON_INTEGER_FORMAT " %-12s ", integer(file, "fd"), string(file, "type"));
		print_name(string(file, "text"));
		putchar('\n');
	}
}

void show_print(const json_t *document)
{
	const json_t *tasks = json_object_get(document, "tasks");
	size_t i;
	json_t *task;

	printf("Image format %s, %zu task%s\n\nTree\n", string(document, "format"), json_array_size(tasks),
	       json_array_size(tasks) == 1 ? "" : "s");
	_cleanup_free_ bool *printed = xcalloc(json_array_size(tasks), sizeof(*printed));
	print_children(tasks, integer(document, "parent"), 0, printed);
	json_array_foreach(tasks, i, task)
	{
		const json_t *memory = json_object_get(task, "memory");

		if (!memory)
			continue;
		printf("\nTask %" JSON_INTEGER_FORMAT " (", integer(task, "pid"));
		print_name(string(task, "name"));
		printf(")\n  Memory\n");
		print_mappings(memory);
		printf("  Files\n");
		print_files(json_object_get(task, "files"));
	}
}
