/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An option that would do nothing is a mistake that nobody notices: memory goes over the network in the clear, because
 * --tls was given to a command that has no connection. So the command line is held against three tables: what the verb
 * knows (options.def), what an option needs besides it, and what it excludes. Config files are for all commands and may
 * name anything.
 */
#include "cmd/option_check.h"

#include <stdio.h>
#include <string.h>

#include "base/fd.h"

#define DUMPS (VERB_DUMP | VERB_PRE_DUMP)
#define PAGES (DUMPS | VERB_PAGE_SERVER | VERB_LAZY_PAGES)

/* @options do nothing unless one of @needed is given too. Names are separated by spaces. */
struct option_need {
	unsigned verbs;
	const char *options, *needed, *hint;
};

static const struct option_need needs[] = {
	{VERB_DUMP, "address port ps-socket tls", "page-server lazy-pages",
	 "add --page-server to send memory to a server, or --lazy-pages to serve it"},
	{VERB_PRE_DUMP, "address port ps-socket tls", "page-server", "add --page-server"},
	{VERB_LAZY_PAGES, "address port tls", "page-server ps-socket",
	 "add --page-server; without it memory comes from the images"},
	{VERB_DUMP, "status-fd", "lazy-pages", "only a dump with --lazy-pages serves anything"},
	{PAGES, "tls-cacert tls-cacrl tls-cert tls-key tls-no-cn-verify", "tls", "add --tls"},
	{VERB_RECEIVE, "tls-cacert tls-cacrl tls-cert tls-key tls-no-cn-verify", "tls", "add --tls"},
};

/* @options cannot be with @others. */
struct option_conflict {
	unsigned verbs;
	const char *options, *others, *hint;
};

static const struct option_conflict conflicts[] = {
	{DUMPS, "page-server", "lazy-pages",
	 "send the memory to a server that waits, or keep it and serve it: give one of the two"},
	{PAGES, "port", "ps-socket", "the descriptor is the connection"},
	{VERB_MIGRATE | VERB_RECEIVE, "psk-file", "tls-cacert tls-cacrl tls-cert tls-key tls-no-cn-verify",
	 "use certificates or a shared key"},
	{VERB_RECEIVE, "stdio", "listen tls psk-file", "ssh is the connection, and encrypts it"},
};

/* Options of migrate that only one kind of address has a use for. */
struct option_scheme {
	const char *options, *scheme;
};

static const struct option_scheme schemes[] = {
	{"psk-file tls-cacert tls-cacrl tls-cert tls-key tls-no-cn-verify", "tls://"},
	{"remote-criu", "ssh://"},
};

/* The first option of @names, separated by spaces, that is in @set, or NULL. */
static const struct option_row *first_of(const struct option_set *set, const char *names)
{
	char name[64];
	int length;

	for (; sscanf(names, "%63s%n", name, &length) == 1; names += length) {
		const struct option_row *row = option_find(name);
		if (row && option_set_has(set, row))
			return row;
	}
	return NULL;
}

static int refuse(const struct option_row *row, struct failure *failure, const char *hint, const char *cause)
{
	char object[80];

	snprintf(object, sizeof(object), "--%s", row->name);
	return fail(failure, EINVAL, "option-useless", object, hint, "%s", cause);
}

/* "it is an option of dump, restore" */
static void verbs_text(unsigned bits, char *text, size_t size)
{
	size_t length = (size_t)snprintf(text, size, "it is an option of");
	const char *separator = " ";

	for (size_t i = 0; i < verb_count && length < size; i++) {
		if (!(verbs[i].bit & bits) || verbs[i].later)
			continue;
		length += (size_t)snprintf(text + length, size - length, "%s%s", separator, verbs[i].name);
		separator = ", ";
	}
}

static int check_verb(const struct options *options, const struct verb *verb, struct failure *failure)
{
	char hint[200], cause[80];

	for (const struct option_row *row = option_rows; row < option_rows + option_row_count; row++) {
		bool harmless = !row->store && !row->later;

		if (harmless || row->verbs & verb->bit || !option_set_has(&options->commanded, row))
			continue;
		verbs_text(row->verbs, hint, sizeof(hint));
		snprintf(cause, sizeof(cause), "has no effect on %s", verb->name);
		return refuse(row, failure, hint, cause);
	}
	return 0;
}

static int check_needs(const struct options *options, unsigned verb, struct failure *failure)
{
	for (const struct option_need *need = needs; need < needs + ARRAY_SIZE(needs); need++) {
		const struct option_row *row = need->verbs & verb ? first_of(&options->commanded, need->options) : NULL;

		if (row && !first_of(&options->given, need->needed))
			return refuse(row, failure, need->hint, "has no effect alone");
	}
	return 0;
}

static int check_conflicts(const struct options *options, unsigned verb, struct failure *failure)
{
	char cause[80];

	for (const struct option_conflict *one = conflicts; one < conflicts + ARRAY_SIZE(conflicts); one++) {
		const struct option_row *row = one->verbs & verb ? first_of(&options->commanded, one->options) : NULL;
		const struct option_row *other = row ? first_of(&options->commanded, one->others) : NULL;

		if (!other)
			continue;
		snprintf(cause, sizeof(cause), "contradicts --%s", other->name);
		return refuse(row, failure, one->hint, cause);
	}
	return 0;
}

static int check_scheme(const struct options *options, struct failure *failure)
{
	const char *address = options->positional_count ? options->positional[0] : NULL;
	char hint[80];

	for (const struct option_scheme *one = schemes; address && one < schemes + ARRAY_SIZE(schemes); one++) {
		const struct option_row *row = first_of(&options->commanded, one->options);

		if (!row || !strncmp(address, one->scheme, strlen(one->scheme)))
			continue;
		snprintf(hint, sizeof(hint), "it is for addresses that begin with %s", one->scheme);
		return refuse(row, failure, hint, "has no effect on this way to the other machine");
	}
	return 0;
}

/* Config files count here too: what they ask for would be left out without a word. */
static int check_stream(const struct options *options, unsigned verb, struct failure *failure)
{
	static const char later[] = "a streamer gives its images to one restore and to no later dump";
	const struct option_row *row = option_find("stream");

	if (!options->stream || !(verb & (DUMPS | VERB_RESTORE)))
		return 0;
	if (verb == VERB_PRE_DUMP)
		return refuse(row, failure, later, "cannot be with pre-dump, whose images a later dump needs");
	if (verb == VERB_DUMP && options->track_mem)
		return refuse(row, failure, later, "contradicts --track-mem");
	if (verb == VERB_DUMP && options->prev_images_dir)
		return refuse(row, failure, "dump in full", "contradicts --prev-images-dir");
	if (verb == VERB_DUMP && options->page_server)
		return refuse(row, failure, "send the memory to a streamer or to a page server: give one of the two",
			      "contradicts --page-server");
	if (options->lazy_pages)
		return refuse(row, failure, "`criu migrate --post-copy` moves a tree without files",
			      "contradicts --lazy-pages");
	if (options->auto_dedup)
		return refuse(row, failure, "there are no files whose pages could be freed",
			      "contradicts --auto-dedup");
	return 0;
}

int options_check(const struct options *options, const struct verb *verb, struct failure *failure)
{
	/* help and version look at none. */
	if (!verb->bit)
		return 0;
	int r = check_verb(options, verb, failure);
	if (!r)
		r = check_needs(options, verb->bit, failure);
	if (!r)
		r = check_conflicts(options, verb->bit, failure);
	if (!r)
		r = check_stream(options, verb->bit, failure);
	if (!r && verb->bit == VERB_MIGRATE)
		r = check_scheme(options, failure);
	return r;
}
