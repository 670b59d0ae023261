/* SPDX-License-Identifier: Apache-2.0 */
/* Mappings that cannot be brought back: each with the reason, so that the whole dump says one clear line. */
#include <string.h>

#include "kinds/mem/mem_kind.h"

static const struct {
	const char *name_prefix;
	uint32_t flags;
	const char *what, *hint;
} refused[] = {
	{"/[aio]", 0, "an asynchronous I/O context (io_setup)", "its owner must call io_destroy before the dump"},
	{"anon_inode:[io_uring]", 0, "an io_uring", IO_URING_HINT},
	{"anon_inode:", 0, "memory of an anonymous inode", "its owner must unmap it before the dump"},
	{"/SYSV", 0, "System V shared memory", "it comes with containers (IPC namespaces)"},
	{"/secretmem", 0, "secret memory (memfd_secret: only its owner can read it)",
	 "its owner must unmap it before the dump"},
	{"socket:", 0, "a socket's ring", "its owner must unmap it before the dump"},
	{"/anon_hugepage", 0, "a mapping of huge pages (MAP_HUGETLB)", "use transparent huge pages"},
	{"[uprobes]", 0, "code that is being traced (uprobes)", "stop tracing it: perf, bpftrace or systemtap"},
	{"", MAPPING_HUGETLB, "a mapping of huge pages (hugetlbfs)", "use transparent huge pages"},
	{"", MAPPING_SHADOW_STACK, "a shadow stack",
	 "start the program without it (GLIBC_TUNABLES=glibc.cpu.x86_shstk=off)"},
	/* Write tracking from outside (kinds/mem/track.h) is none of its owner's business; its own has a descriptor. */
	{"", MAPPING_USERFAULT, "memory registered with a userfaultfd", "its owner must close it before the dump"},
	{"", MAPPING_IO, "memory of a device", "its owner must unmap it before the dump"},
	{"", MAPPING_PFN, "memory of a device", "its owner must unmap it before the dump"},
};

static int find_reason(const struct mapping *mapping)
{
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		if (!strncmp(mapping->name, refused[i].name_prefix, strlen(refused[i].name_prefix)) &&
		    (!refused[i].flags || (mapping->flags & refused[i].flags)))
			return i;
	return -1;
}

static bool unsupported_match(const struct mapping *mapping)
{
	return find_reason(mapping) >= 0;
}

static int unsupported_dump(struct dump *dump, struct dump_task *task, const struct mapping *mapping, VmaEntry *entry)
{
	int reason = find_reason(mapping);

	return fail(&dump->failure, EOPNOTSUPP, "mapping-unsupported", NULL,
		    reason < 0 ? "its owner must unmap it before the dump" : refused[reason].hint,
		    "%s cannot be checkpointed", reason < 0 ? mapping->name : refused[reason].what);
}

const struct mem_kind unsupported_mapping_kind = {
	.name = "unsupported",
	.match = unsupported_match,
	.dump = unsupported_dump,
};
