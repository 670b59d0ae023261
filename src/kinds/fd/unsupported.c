/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What no other row of the table knows. It matches everything, so it must be the last row: its dump is the one place
 * that tells a user what the program holds and why it cannot be moved.
 */
#include "kinds/fd/fd_kind.h"

#include <string.h>

#include "kinds/mem/track.h"

static const struct {
	const char *link;
	const char *what;
	const char *hint;
} known[] = {
	{"anon_inode:[io_uring]", "an io_uring", "start the program without io_uring (UV_USE_IO_URING=0 for node)"},
	{"anon_inode:[userfaultfd]", "a userfaultfd", "its owner must close it before the dump"},
	{"anon_inode:[fanotify]", "a fanotify group", "its owner must close it before the dump"},
	{"anon_inode:[perf_event]", "a perf event", "stop profiling before the dump"},
	{"anon_inode:bpf-map", "a BPF map", "its owner must close it before the dump"},
	{"anon_inode:bpf-prog", "a BPF program", "its owner must close it before the dump"},
	{"anon_inode:kvm", "a virtual machine (kvm)", "migrate the virtual machine with its own monitor"},
	{"anon_inode:[landlock-ruleset]", "a landlock ruleset", "its owner must close it before the dump"},
	{"anon_inode:seccomp notify", "a seccomp notification descriptor", "its owner must close it before the dump"},
};

static bool unsupported_match(const struct target_fd *target)
{
	return true;
}

static int unsupported_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	/* Looked for only when one is met: a dump that fails so is tried again, and closes what it finds first. */
	if (tracker_is_remnant(target->task, target->number))
		return fail(&dump->failure, EAGAIN, "fd-remnant", NULL, "dump again",
			    "it is a userfaultfd that a killed criu has left");
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strncmp(target->link, known[i].link, strlen(known[i].link)))
			return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, known[i].hint,
				    "%s cannot be checkpointed", known[i].what);
	return fail(&dump->failure, EOPNOTSUPP, "fd-unsupported", NULL, "its owner must close it before the dump",
		    "\"%s\" is of a kind that cannot be checkpointed", target->link);
}

static int unsupported_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	return fail(&restore->failure, EOPNOTSUPP, "image-file-kind", NULL, NULL,
		    "files.img: file %u is of a kind (%d) that this release cannot restore", file->id,
		    file->entry->type);
}

const struct fd_kind unsupported_kind = {
	.name = "unsupported",
	.match = unsupported_match,
	.dump = unsupported_dump,
	.open = unsupported_open,
};
