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
		const char *file = string(mapping, "file");

		printf("    %s-%s %s %s", string(mapping, "start"), string(mapping, "end"),
		       string(mapping, "protection"), string(mapping, "kind"));
		if (*file)
			putchar(' ');
		print_name(file);
		putchar('\n');
	}
}

static void print_files(const json_t *files)
{
	size_t i;
	json_t *file;

	json_array_foreach(files, i, file)
	{
		const char *text = string(file, "text");

		printf("    fd %-4" JSON_INTEGER_FORMAT " %-*s", integer(file, "fd"), *text ? 13 : 0,
		       string(file, "type"));
		print_name(text);
		putchar('\n');
	}
}

static void print_task_name(const json_t *task)
{
	printf("%" JSON_INTEGER_FORMAT " (", integer(task, "pid"));
	print_name(string(task, "name"));
	printf(")\n");
}

static void print_pages(const json_t *memory)
{
	static const char *const rows[][2] = {{"mapped_bytes", "mapped"},
					      {"stored_bytes", "in these images"},
					      {"shared_bytes", "shared with another task"},
					      {"in_parent_bytes", "in the parent images"},
					      {"lazy_bytes", "may come after the restore"}};
	char text[32];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (integer(memory, rows[i][0]))
			printf("    %10s  %s\n", bytes_text((uint64_t)integer(memory, rows[i][0]), text, sizeof(text)),
			       rows[i][1]);
}

static void print_process(const json_t *task)
{
	printf("%7" JSON_INTEGER_FORMAT " %7" JSON_INTEGER_FORMAT " %7" JSON_INTEGER_FORMAT " %7" JSON_INTEGER_FORMAT
	       " %-8s ",
	       integer(task, "pid"), integer(task, "parent"), integer(task, "process_group"), integer(task, "session"),
	       string(task, "state"));
	print_name(string(task, "name"));
	putchar('\n');
}

void show_print_part(const json_t *document, enum show_part part)
{
	size_t i;
	json_t *task;

	if (part == SHOW_PROCESSES)
		printf("%7s %7s %7s %7s %-8s %s\n", "PID", "PPID", "PGID", "SID", "STATE", "COMMAND");
	json_array_foreach(json_object_get(document, "tasks"), i, task)
	{
		const json_t *memory = json_object_get(task, "memory");

		if (part == SHOW_PROCESSES) {
			print_process(task);
			continue;
		}
		if (!memory)
			continue; /* a zombie has nothing */
		print_task_name(task);
		if (part == SHOW_FILES)
			print_files(json_object_get(task, "files"));
		else if (part == SHOW_MAPPINGS)
			print_mappings(memory);
		else
			print_pages(memory);
	}
}

void show_print_json(const json_t *document)
{
	json_dumpf(document, stdout, JSON_COMPACT);
	putchar('\n');
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
		printf("\nTask ");
		print_task_name(task);
		printf("  Memory\n");
		print_mappings(memory);
		printf("  Files\n");
		print_files(json_object_get(task, "files"));
	}
}
