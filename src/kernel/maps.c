/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel/maps.h"

#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "kernel/proc.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static const struct {
	char code[3];
	uint32_t flag;
	int advice; /* -1: not an advice */
} vm_flags[] = {
	{"mw", MAPPING_MAY_WRITE, -1},     {"gd", MAPPING_GROWS_DOWN, -1},   {"lo", MAPPING_LOCKED, -1},
	{"lf", MAPPING_LOCK_ON_FAULT, -1}, {"io", MAPPING_IO, -1},           {"pf", MAPPING_PFN, -1},
	{"sl", MAPPING_SEALED, -1},        {"nr", MAPPING_NO_RESERVE, -1},   {"ht", MAPPING_HUGETLB, -1},
	{"dp", MAPPING_DROPPABLE, -1},     {"ss", MAPPING_SHADOW_STACK, -1}, {"um", MAPPING_USERFAULT, -1},
	{"ui", MAPPING_USERFAULT, -1},     {"rr", 0, MADV_RANDOM},           {"sr", 0, MADV_SEQUENTIAL},
	{"dc", 0, MADV_DONTFORK},          {"mg", 0, MADV_MERGEABLE},        {"hg", 0, MADV_HUGEPAGE},
	{"nh", 0, MADV_NOHUGEPAGE},        {"dd", 0, MADV_DONTDUMP},         {"wf", 0, MADV_WIPEONFORK},
};

static void parse_vm_flags(struct mapping *mapping, const char *line)
{
	for (; *line && *line != '\n'; line++) {
		if (*line == ' ')
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(vm_flags); i++)
			if (line[0] == vm_flags[i].code[0] && line[1] == vm_flags[i].code[1]) {
				mapping->flags |= vm_flags[i].flag;
				if (vm_flags[i].advice >= 0)
					mapping->advice |= 1ULL << vm_flags[i].advice;
			}
		while (line[1] && line[1] != ' ' && line[1] != '\n')
			line++;
	}
}

static uint64_t parse_hex(char **at)
{
	uint64_t value = 0;

	for (;; (*at)++) {
		char c = **at;
		if (c >= '0' && c <= '9')
			value = value << 4 | (c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value << 4 | (c - 'a' + 10);
		else
			return value;
	}
}

/* Octal escapes are how the kernel writes a newline in a path; decoded in place. */
static void unescape(char *name)
{
	char *to = name;

	for (char *from = name; *from; from++) {
		if (from[0] == '\\' && from[1] == '0' && from[2] == '1' && from[3] == '2') {
			*to++ = '\n';
			from += 3;
		} else {
			*to++ = *from;
		}
	}
	*to = '\0';
}

/* "start-end rwxp offset major:minor inode   name"; the line ends are replaced. Returns the next line. */
static char *parse_header(char *at, struct mapping *mapping)
{
	char *line_end = strchrnul(at, '\n');

	mapping->start = parse_hex(&at);
	at++;
	mapping->end = parse_hex(&at);
	at++;
	if (line_end - at < 5)
		return NULL;
	mapping->protection =
		(at[0] == 'r' ? PROT_READ : 0) | (at[1] == 'w' ? PROT_WRITE : 0) | (at[2] == 'x' ? PROT_EXEC : 0);
	mapping->shared = at[3] == 's';
	at += 5;
	mapping->offset = parse_hex(&at);
	at++;
	mapping->dev_major = parse_hex(&at);
	at++;
	mapping->dev_minor = parse_hex(&at);
	mapping->inode = strtoull(at, &at, 10);
	if (at > line_end)
		return NULL;
	while (*at == ' ')
		at++;
	mapping->name = at;
	bool last = !*line_end;
	*line_end = '\0';
	unescape(at);
	return last ? line_end : line_end + 1;
}

static int parse(struct mappings *mappings, bool with_flags)
{
	size_t capacity = 0;

	for (char *at = mappings->text; at && *at;) {
		ARRAY_GROW(mappings->items, mappings->count, capacity);
		struct mapping *mapping = &mappings->items[mappings->count];
		*mapping = (struct mapping){};
		at = parse_header(at, mapping);
		if (!at || mapping->end <= mapping->start)
			return -EPROTO;
		mappings->count++;
		if (!with_flags)
			continue;
		at = strstr(at, "VmFlags:");
		if (!at)
			return -EPROTO;
		at += strlen("VmFlags:");
		parse_vm_flags(mapping, at);
		at = strchrnul(at, '\n');
		at += *at != '\0';
	}
	return 0;
}

static int read_mappings(int proc_dirfd, const char *path, bool with_flags, struct mappings *ret_mappings)
{
	struct mappings mappings = {};
	int error = read_text_at(proc_dirfd, path, &mappings.text, NULL);

	if (error < 0)
		return error == -ENOENT ? -ESRCH : error;
	error = parse(&mappings, with_flags);
	if (error < 0) {
		mappings_free(&mappings);
		return error;
	}
	*ret_mappings = mappings;
	return 0;
}

int mappings_read(int proc_dirfd, struct mappings *ret_mappings)
{
	return read_mappings(proc_dirfd, "smaps", true, ret_mappings);
}

int mappings_read_short(int proc_dirfd, struct mappings *ret_mappings)
{
	return read_mappings(proc_dirfd, "maps", false, ret_mappings);
}

void mappings_free(struct mappings *mappings)
{
	free(mappings->items);
	free(mappings->text);
	*mappings = (struct mappings){};
}
