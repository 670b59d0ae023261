/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line is walked twice: the first walk stores nothing and finds the verb and which config files to read,
 * so that the files can be applied before the second walk, whose values win. getopt's tables are made from
 * options.def, with one letter for two options (-d) going to the one that the verb knows.
 */
#include "cmd/options.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "cmd/config.h"
#include "cmd/option_values.h"
#include "cmd/verbs.h"

enum { NO_NAME = 3, FIRST_LONG = 0x1000 };

#define PLAIN false
#define NEGATABLE true
#define ALL_VERBS VERB_ALL_VERBS
#define NONE ARGUMENT_NONE
#define REQUIRED ARGUMENT_REQUIRED
#define OPTIONAL ARGUMENT_OPTIONAL
#define DUMP VERB_DUMP
#define RESTORE VERB_RESTORE
#define CHECK VERB_CHECK
#define KILL VERB_KILL
#define RESUME VERB_RESUME
#define SHOW VERB_SHOW
#define EXPLAIN VERB_EXPLAIN
#define PRE_DUMP VERB_PRE_DUMP
#define SERVICE VERB_SERVICE
#define MIGRATE VERB_MIGRATE
#define PAGE_SERVER VERB_PAGE_SERVER
#define LAZY_PAGES VERB_LAZY_PAGES
#define RECEIVE VERB_RECEIVE
#define OPTION(long, short, argument, value, negatable, verbs, rpc, store, field, help)                       \
	{long, short, argument, value, negatable, verbs, rpc, store_##store, offsetof(struct options, field), \
	 NULL, help},
#define HARMLESS(long, short, argument, value, negatable, verbs, rpc, help) \
	{long, short, argument, value, negatable, verbs, rpc, NULL, 0, NULL, help},
#define LATER(long, short, argument, value, negatable, verbs, rpc, with, help) \
	{long, short, argument, value, negatable, verbs, rpc, NULL, 0, with, help},

const struct option_row option_rows[] = {
#include "cmd/options.def"
};
const size_t option_row_count = ARRAY_SIZE(option_rows);
_Static_assert(ARRAY_SIZE(option_rows) <= OPTION_SET_WORDS * OPTION_SET_WORD_BITS, "each option has a bit in a set");

static void set_change(struct option_set *set, const struct option_row *row, bool member)
{
	size_t index = (size_t)(row - option_rows);
	uint64_t bit = UINT64_C(1) << index % OPTION_SET_WORD_BITS;

	if (member)
		set->words[index / OPTION_SET_WORD_BITS] |= bit;
	else
		set->words[index / OPTION_SET_WORD_BITS] &= ~bit;
}

bool option_set_has(const struct option_set *set, const struct option_row *row)
{
	size_t index = (size_t)(row - option_rows);

	return set->words[index / OPTION_SET_WORD_BITS] >> index % OPTION_SET_WORD_BITS & 1;
}

void options_init(struct options *options)
{
	*options = (struct options){
		.timeout_seconds = TIMEOUT_DEFAULT,
		.downtime_ms = 100,
		.ps_socket = -1,
		.status_fd = -1,
		.ghost_limit_bytes = UINT64_C(1) << 30,
		.verbosity = LOG_LEVEL_WARN,
		.pre_dump_mode = PRE_DUMP_SPLICE,
	};
}

unsigned options_stop_seconds(const struct options *options)
{
	enum { DEFAULT_SECONDS = 10 };

	return options->timeout_seconds == TIMEOUT_DEFAULT ? DEFAULT_SECONDS : options->timeout_seconds;
}

void options_free(struct options *options)
{
	for (size_t i = 0; i < options->config_texts.count; i++)
		free(options->config_texts.items[i]);
	free(options->config_texts.items);
	free(options->close_fds);
	free(options->action_scripts.items);
	free(options->features.items);
}

const struct option_row *option_find(const char *name)
{
	for (size_t i = 0; i < option_row_count; i++)
		if (!strcmp(option_rows[i].name, name))
			return &option_rows[i];
	return NULL;
}

static const struct option_row *find_short(char name, unsigned verb)
{
	const struct option_row *found = NULL;

	for (size_t i = 0; i < option_row_count; i++) {
		const struct option_row *row = &option_rows[i];

		if (row->short_name != name)
			continue;
		if (row->verbs & verb)
			return row;
		found = found ?: row;
	}
	return found;
}

/* Stores one option that getopt or a config file gave. @negated: --no-<name>. */
static int apply(struct options *options, unsigned verb, const struct option_row *row, bool negated, const char *value,
		 struct failure *failure)
{
	void *field = (char *)options + row->field_offset;

	set_change(&options->given, row, !negated);
	if (row->later) {
		if (!negated && (row->verbs & verb) && !options->later)
			options->later = row;
		return 0;
	}
	if (!row->store)
		return 0;
	if (negated)
		value = "no";
	/* Values that come later must not stop verbs that do not look at the option. */
	if (!(row->verbs & verb) && row->field_offset == offsetof(struct options, later))
		return 0;
	return row->store(options, row, field, value, failure);
}

int options_set(struct options *options, unsigned verb, const char *name, const char *value, struct failure *failure)
{
	const struct option_row *row = option_find(name);
	bool negated = false;

	if (!row && !strncmp(name, "no-", NO_NAME)) {
		row = option_find(name + NO_NAME);
		negated = row && row->negatable;
		if (!negated)
			row = NULL;
	}
	if (!row)
		return fail(failure, EINVAL, "option-unknown", NULL, "see `criu help`", "unknown option \"%s\"", name);
	if (!value && row->argument == ARGUMENT_REQUIRED && !negated)
		return fail(failure, EINVAL, "option-argument", NULL, NULL, "option \"%s\" needs a value", name);
	if (value && (row->argument == ARGUMENT_NONE || negated))
		return fail(failure, EINVAL, "option-argument", NULL, NULL, "option \"%s\" takes no value", name);
	return apply(options, verb, row, negated, value, failure);
}

/* getopt's tables. A long option returns FIRST_LONG + 2 * row, plus one for its --no- form. */
struct getopt_tables {
	struct option *long_options;
	char **names; /* of --no- forms, owned */
	size_t name_count;
	char short_options[3 * 64];
};

static void free_tables(struct getopt_tables *tables)
{
	for (size_t i = 0; i < tables->name_count; i++)
		free(tables->names[i]);
	free(tables->names);
	free(tables->long_options);
}

static void make_tables(struct getopt_tables *tables)
{
	static const int arguments[] = {
		[ARGUMENT_NONE] = no_argument,
		[ARGUMENT_REQUIRED] = required_argument,
		[ARGUMENT_OPTIONAL] = optional_argument,
	};
	static const char *const colons[] = {"", ":", "::"};
	struct option *next = tables->long_options = xcalloc(2 * option_row_count + 1, sizeof(*next));
	char *letters = tables->short_options;

	tables->names = xcalloc(option_row_count, sizeof(*tables->names));
	*letters++ = ':'; /* tells a missing argument from an unknown option */
	for (size_t i = 0; i < option_row_count; i++) {
		const struct option_row *row = &option_rows[i];

		*next++ = (struct option){row->name, arguments[row->argument], NULL, FIRST_LONG + 2 * (int)i};
		if (row->negatable) {
			char *name = tables->names[tables->name_count++] = xasprintf("no-%s", row->name);
			*next++ = (struct option){name, no_argument, NULL, FIRST_LONG + 2 * (int)i + 1};
		}
		if (row->short_name && !memchr(tables->short_options, row->short_name, letters - tables->short_options))
			letters += sprintf(letters, "%c%s", row->short_name, colons[row->argument]);
	}
}

static int usage_failure(int argc, char **argv, int letter, struct failure *failure)
{
	const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "";
	char text[80];

	/* optopt is the letter of a short option, or our number of a long one; the word may hold several letters. */
	if (optopt && optopt < FIRST_LONG) {
		snprintf(text, sizeof(text), "-%c", optopt);
		word = text;
	}
	if (letter == ':')
		return fail(failure, EINVAL, "option-argument", NULL, "see `criu help`", "option %s needs a value",
			    word);
	if (optopt >= FIRST_LONG)
		return fail(failure, EINVAL, "option-argument", NULL, "see `criu help`", "option %s takes no value",
			    word);
	return fail(failure, EINVAL, "option-unknown", NULL, "see `criu help`", "unknown option %s", word);
}

/* One walk over the command line. */
static int walk(int argc, char **argv, struct options *options, const struct getopt_tables *tables, unsigned verb,
		struct failure *failure)
{
	int letter;

	optind = 0; /* also resets glibc's permutation */
	opterr = 0;
	while ((letter = getopt_long(argc, argv, tables->short_options, tables->long_options, NULL)) != -1) {
		if (letter == ':' || letter == '?')
			return usage_failure(argc, argv, letter, failure);
		bool negated = letter >= FIRST_LONG && ((letter - FIRST_LONG) & 1);
		const struct option_row *row =
			letter >= FIRST_LONG ? &option_rows[(letter - FIRST_LONG) / 2] : find_short((char)letter, verb);
		int r = apply(options, verb, row, negated, optarg, failure);
		if (r < 0)
			return r;
		set_change(&options->commanded, row, !negated);
	}
	options->verb = optind < argc ? argv[optind] : NULL;
	options->positional = argv + (optind < argc ? optind + 1 : argc);
	options->positional_count = optind < argc ? (size_t)(argc - optind - 1) : 0;
	return 0;
}

/* What follows a word that is wrong is not parsed, but a program that asked for events must get its failure as one. */
static bool has_json_word(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
		if (!strcmp(argv[i], "--json"))
			return true;
	return false;
}

int options_parse(int argc, char **argv, struct options *ret_options, struct failure *failure)
{
	__attribute__((cleanup(free_tables))) struct getopt_tables tables = {};
	__attribute__((cleanup(options_free))) struct options first;

	make_tables(&tables);
	options_init(ret_options);
	options_init(&first);
	int r = walk(argc, argv, &first, &tables, 0, failure);
	ret_options->json = first.json || (r < 0 && has_json_word(argc, argv));
	if (r < 0)
		return r;
	const struct verb *verb = first.verb ? verb_find(first.verb) : NULL;
	unsigned verb_bit = verb ? verb->bit : 0;
	if (!first.help && !first.version && (r = config_read(&first, ret_options, verb_bit, failure)) < 0)
		return r;
	return walk(argc, argv, ret_options, &tables, verb_bit, failure);
}

int options_refuse_later(const struct options *options, struct failure *failure)
{
	char object[120];

	if (!options->later)
		return 0;
	if (options->later_value) {
		snprintf(object, sizeof(object), "--%s=%s", options->later->name, options->later_value);
		return fail(failure, EOPNOTSUPP, "option-later", object, options->later->help,
			    "not part of this release");
	}
	snprintf(object, sizeof(object), "--%s", options->later->name);
	return fail(failure, EOPNOTSUPP, "option-later", object, "see README, what is supported", "comes with %s",
		    options->later->later);
}
