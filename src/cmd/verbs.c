/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/verbs.h"

#include <string.h>

#include "base/fd.h"

const struct verb verbs[] = {
	{"dump", VERB_DUMP, VERB_IMAGES_WRITE, true, verb_dump, NULL, "",
	 "stop a tree of processes and write it to images"},
	{"pre-dump", VERB_PRE_DUMP, VERB_IMAGES_WRITE, true, verb_pre_dump, NULL, "",
	 "write the memory of a tree while it runs, for a dump that follows"},
	{"restore", VERB_RESTORE, VERB_IMAGES_READ, false, verb_restore, NULL, "[-- COMMAND…]",
	 "make the tree again from its images"},
	{"dedup", VERB_DEDUP, VERB_IMAGES_READ, false, verb_dedup, NULL, "",
	 "free the room of pages in parent images that newer images replace"},
	{"kill", VERB_KILL, VERB_IMAGES_IF_GIVEN, true, verb_kill, NULL, "",
	 "end a tree that `dump --leave-stopped` left"},
	{"resume", VERB_RESUME, VERB_IMAGES_IF_GIVEN, true, verb_resume, NULL, "",
	 "let a tree run again that `dump --leave-stopped` left"},
	{"explain", VERB_EXPLAIN, VERB_IMAGES_NONE, true, verb_explain, NULL, "",
	 "list everything that stands in the way of a dump, and change nothing"},
	{"show", VERB_SHOW, VERB_IMAGES_READ, false, verb_show, NULL, "[DIR]", "tell what is in an images directory"},
	{"check", VERB_CHECK, VERB_IMAGES_NONE, false, verb_check, NULL, "",
	 "find out whether this kernel has what criu needs"},
	{"migrate", VERB_MIGRATE, VERB_IMAGES_NONE, false, verb_migrate, NULL, "[ssh|tls|tcp://HOST]",
	 "move a running tree to another machine"},
	{"receive", VERB_RECEIVE, VERB_IMAGES_NONE, false, verb_receive, NULL, "",
	 "take trees that other machines send"},
	{"page-server", VERB_PAGE_SERVER, VERB_IMAGES_WRITE, false, verb_page_server, NULL, "",
	 "receive memory for images"},
	{"lazy-pages", VERB_LAZY_PAGES, VERB_IMAGES_READ, false, verb_lazy_pages, NULL, "",
	 "bring memory to a tree that `restore --lazy-pages` makes"},
	{"version", 0, VERB_IMAGES_NONE, false, verb_version, NULL, "", "print the version"},
	{"help", 0, VERB_IMAGES_NONE, false, verb_help, NULL, "[COMMAND]", "print help"},

	{"cpuinfo", 0, VERB_IMAGES_NONE, false, NULL, "a later one", "", "compare processors of two machines"},
	{"service", VERB_SERVICE, VERB_IMAGES_NONE, false, NULL, "the RPC service", "", "serve requests on a socket"},
	{"swrk", VERB_SERVICE, VERB_IMAGES_NONE, false, NULL, "the RPC service", "", "serve one caller's requests"},
};
const size_t verb_count = ARRAY_SIZE(verbs);

const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < verb_count; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}
