/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cmd/command.h"

enum { LEFT_COLUMN = 34, LINE_WIDTH = 100 };

/* Prints words from the left column on, broken at spaces. */
static void print_wrapped(const char *text)
{
	size_t used = 0;

	while (*text) {
		size_t length = strcspn(text, " ");

		if (used && used + 1 + length > LINE_WIDTH - LEFT_COLUMN) {
			printf("\n%*s", LEFT_COLUMN, "");
			used = 0;
		}
		used += (size_t)printf("%s%.*s", used ? " " : "", (int)length, text);
		text += length;
		text += strspn(text, " ");
	}
	putchar('\n');
}

static void print_option(const struct option_row *row)
{
	static const char *const joints[] = {"%s", " %s", "[=%s]"};
	char left[80], value[40];
	char letter[8] = "    ";

	if (row->short_name)
		snprintf(letter, sizeof(letter), "-%c, ", row->short_name);
	snprintf(value, sizeof(value), joints[row->argument], row->value_name);
	int length =
		snprintf(left, sizeof(left), "  %s--%s%s%s", letter, row->negatable ? "[no-]" : "", row->name, value);
	printf("%-*s", LEFT_COLUMN, left);
	if (length >= LEFT_COLUMN)
		printf("\n%*s", LEFT_COLUMN, "");
	print_wrapped(row->help);
}

static void print_options(unsigned verb, bool of_all_verbs)
{
	for (size_t i = 0; i < option_row_count; i++) {
		const struct option_row *row = &option_rows[i];

		if (row->later || !(row->verbs & verb) || ((row->verbs == VERB_ALL_VERBS) != of_all_verbs))
			continue;
		print_option(row);
	}
}

static int help_for_verb(const struct verb *verb)
{
	printf("Usage: criu %s%s%s%s\n\n%c%s.\n", verb->name, verb->bit ? " [OPTION…]" : "", *verb->words ? " " : "",
	       verb->words, verb->summary[0] - 'a' + 'A', verb->summary + 1);
	if (verb->later)
		printf("\nThis command is not part of this release; it comes with %s.\n", verb->later);
	if (verb->later || !verb->bit)
		return 0;
	printf("\nOptions of %s:\n", verb->name);
	print_options(verb->bit, false);
	printf("\nOptions of every command:\n");
	print_options(verb->bit, true);
	return 0;
}

static int help_for_all(void)
{
	printf("criu moves a running tree of processes to another machine, or writes it to image files and\n"
	       "makes it again from them.\n\n"
	       "Usage: criu COMMAND [OPTION…]\n\n");
	for (size_t i = 0; i < verb_count; i++)
		if (!verbs[i].later)
			printf("  %-11s %s\n", verbs[i].name, verbs[i].summary);
	printf("\nMove a running program to another machine:\n"
	       "  criu migrate --tree PID ssh://root@HOST\n"
	       "  criu migrate --tree PID --dry-run ssh://root@HOST     (only tells what would fail)\n"
	       "\nThe same in single steps:\n"
	       "  criu dump --tree PID --images-dir DIR --leave-stopped\n"
	       "  scp -r DIR other:DIR\n"
	       "  criu restore --tree PID --images-dir DIR     (on the other machine)\n"
	       "  criu kill --tree PID                         (here, when it runs there)\n\n"
	       "`criu COMMAND --help` tells the options of a command; the manual pages criu(8) and\n"
	       "criu-migrate(8) tell all.\n");
	return 0;
}

int verb_help(struct command *command)
{
	const struct options *options = command->options;
	const char *name = options->verb;

	/* `criu help dump` and `criu dump --help` */
	if (name && !strcmp(name, "help"))
		name = options->positional_count ? options->positional[0] : NULL;
	if (!name)
		return help_for_all();
	const struct verb *verb = verb_find(name);
	if (!verb)
		return fail(&command->failure, EINVAL, "usage", NULL, "see `criu help`", "unknown command \"%s\"",
			    name);
	return help_for_verb(verb);
}
