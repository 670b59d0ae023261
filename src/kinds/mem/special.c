/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mappings that the kernel itself makes: the vDSO's code, the pages it reads the time from, and the old vsyscall
 * page. Their pages are not ours to write; the vDSO's are kept in the images because its code may be in use and the
 * target's kernel may have another one.
 */
#include <string.h>
#include <sys/mman.h>

#include "kinds/mem/mem_kind.h"

static bool vsyscall_match(const struct mapping *mapping)
{
	return !strcmp(mapping->name, "[vsyscall]");
}

static int vsyscall_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	entry->status = VMA_STATUS_VSYSCALL | VMA_STATUS_ANON_PRIVATE;
	entry->flags = MAP_PRIVATE | MAP_ANONYMOUS;
	return 0;
}

static bool vsyscall_match_entry(const VmaEntry *entry)
{
	return entry->status & VMA_STATUS_VSYSCALL;
}

const struct mem_kind vsyscall_mapping_kind = {
	.name = "vsyscall",
	.match = vsyscall_match,
	.dump = vsyscall_dump,
	.match_entry = vsyscall_match_entry,
	.is_special = true,
};

static bool vdso_match(const struct mapping *mapping)
{
	return !strcmp(mapping->name, "[vdso]");
}

static int vdso_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	entry->status = VMA_STATUS_REGULAR | VMA_STATUS_VDSO | VMA_STATUS_ANON_PRIVATE;
	entry->flags = MAP_PRIVATE | MAP_ANONYMOUS;
	return 0;
}

static bool vdso_match_entry(const VmaEntry *entry)
{
	return entry->status & VMA_STATUS_VDSO;
}

const struct mem_kind vdso_mapping_kind = {
	.name = "vdso",
	.match = vdso_match,
	.dump = vdso_dump,
	.has_private_pages = true,
	.match_entry = vdso_match_entry,
	.is_special = true,
};

static bool vvar_match(const struct mapping *mapping)
{
	return !strncmp(mapping->name, "[vvar", strlen("[vvar"));
}

static int vvar_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	entry->status = VMA_STATUS_REGULAR | VMA_STATUS_ANON_PRIVATE | VMA_STATUS_VVAR;
	entry->flags = MAP_PRIVATE | MAP_ANONYMOUS;
	return 0;
}

static bool vvar_match_entry(const VmaEntry *entry)
{
	return entry->status & VMA_STATUS_VVAR;
}

const struct mem_kind vvar_mapping_kind = {
	.name = "vvar",
	.match = vvar_match,
	.dump = vvar_dump,
	.match_entry = vvar_match_entry,
	.is_special = true,
};
