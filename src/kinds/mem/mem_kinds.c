/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/mem/mem_kind.h"

extern const struct mem_kind vsyscall_mapping_kind, vdso_mapping_kind, vvar_mapping_kind, unsupported_mapping_kind,
	shared_mapping_kind, anonymous_mapping_kind, file_mapping_kind;

const struct mem_kind *const mem_kinds[] = {
	&vsyscall_mapping_kind,
	&vdso_mapping_kind,
	&vvar_mapping_kind,
	&unsupported_mapping_kind, /* before the general ones: it knows what only looks like a file */
	&shared_mapping_kind,
	&anonymous_mapping_kind,
	&file_mapping_kind,
	NULL,
};

const struct mem_kind *mem_kind_of_mapping(const struct mapping *mapping)
{
	for (const struct mem_kind *const *kind = mem_kinds; *kind; kind++)
		if ((*kind)->match(mapping))
			return *kind;
	return &unsupported_mapping_kind;
}

const struct mem_kind *mem_kind_of_entry(const VmaEntry *entry)
{
	for (const struct mem_kind *const *kind = mem_kinds; *kind; kind++)
		if ((*kind)->match_entry && (*kind)->match_entry(entry))
			return *kind;
	return NULL;
}
