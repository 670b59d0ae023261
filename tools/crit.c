/* SPDX-License-Identifier: Apache-2.0 */
/* crit: images for people. Decodes them to JSON, makes images of JSON, and tells what a dump holds. */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "cmd/show.h"
#include "image/json.h"

struct arguments {
	const char *input;
	const char *output;
	bool pretty;
	char **words; /* what is not an option, behind the verb */
	int word_count;
};

static int usage(FILE *out)
{
	fputs("usage: crit decode [-i IMAGE] [-o JSON] [--pretty]   image to JSON\n"
	      "       crit encode [-i JSON] -o IMAGE               JSON to image\n"
	      "       crit show IMAGE                              image as readable JSON\n"
	      "       crit info IMAGE                              kind and number of entries\n"
	      "       crit x DIRECTORY [ps|fds|mems|rss|json]      processes, files, mappings, pages of a dump, or "
	      "all\n",
	      out);
	return out == stdout ? 0 : 1;
}

static int report(const struct failure *failure)
{
	char line[1400];

	fprintf(stderr, "crit: %s\n", failure_line(failure, line, sizeof(line)));
	return 1;
}

static int open_image(const char *path, struct failure *failure, struct image **ret_image)
{
	int error = image_open_any(AT_FDCWD, path, failure, ret_image);

	if (error == -ENOENT && !failure_is_set(failure))
		return fail(failure, ENOENT, "image-missing", path, NULL, "there is no such file");
	return error;
}

/* The text is complete before the first byte of it is written: no half JSON for a damaged image. */
static int decode_text(const char *path, bool pretty, struct failure *failure, char **ret_text, size_t *ret_length)
{
	struct image *image = NULL;
	char *text = NULL;
	int error = open_image(path, failure, &image);

	if (error)
		return error;
	FILE *memory = open_memstream(&text, ret_length);
	if (!memory)
		error = fail_errno(failure, errno, "memory", path, NULL, "cannot be decoded");
	else
		error = image_decode(image, pretty, memory);
	if (memory && fclose(memory) && !error)
		error = fail(failure, ENOMEM, "memory", path, NULL, "too little memory to decode it");
	image_close(&image);
	if (error) {
		free(text);
		return error;
	}
	*ret_text = text;
	return 0;
}

static int write_text(const char *path, const char *text, size_t length, struct failure *failure)
{
	_cleanup_fd_ int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : dup(STDOUT_FILENO);

	int error = fd < 0 ? -errno : write_full(fd, text, length);
	if (error)
		return fail_errno(failure, error, "output", path ? path : "standard output", NULL, "cannot be written");
	return 0;
}

static int decode(const struct arguments *arguments, struct failure *failure)
{
	const char *input = arguments->input ? arguments->input : "/dev/stdin";
	_cleanup_free_ char *text = NULL;
	size_t length = 0;
	int error = decode_text(input, arguments->pretty, failure, &text, &length);

	return error ? error : write_text(arguments->output, text, length, failure);
}

static int encode(const struct arguments *arguments, struct failure *failure)
{
	const char *name = arguments->input ? arguments->input : "standard input";
	FILE *in = arguments->input ? fopen(arguments->input, "re") : stdin;
	json_t *json = NULL;

	if (!arguments->output)
		return fail(failure, EINVAL, "usage", "encode", "crit encode -i JSON -o IMAGE", "no output is named");
	if (!in)
		return fail_errno(failure, errno, "json-open", name, NULL, "cannot be opened");
	int error = json_read(in, name, failure, &json);
	if (in != stdin)
		fclose(in);
	if (error)
		return error;
	error = image_encode(json, AT_FDCWD, arguments->output, failure);
	json_decref(json);
	return error ? fail_in(failure, "%s", name) : 0;
}

static int info(const char *path, struct failure *failure)
{
	_cleanup_free_ char *text = NULL;
	size_t length = 0;
	int error = decode_text(path, false, failure, &text, &length);

	if (error)
		return error;
	_cleanup_free_ char *copy = xstrdup(text);
	FILE *in = fmemopen(copy, length, "r");
	json_t *json = NULL;
	if (!in)
		return fail_errno(failure, errno, "memory", path, NULL, "cannot be decoded");
	error = json_read(in, path, failure, &json);
	fclose(in);
	if (error)
		return error;
	printf("magic: %s\nentries: %zu\n", json_string_value(json_object_get(json, "magic")),
	       json_array_size(json_object_get(json, "entries")));
	json_decref(json);
	return 0;
}

static int explore(const struct arguments *arguments, struct failure *failure)
{
	static const char *const names[] = {
		[SHOW_PROCESSES] = "ps", [SHOW_FILES] = "fds", [SHOW_MAPPINGS] = "mems", [SHOW_PAGES] = "rss"};
	const char *directory = arguments->words[0];
	const char *what = arguments->word_count > 1 ? arguments->words[1] : NULL;
	_cleanup_fd_ int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	json_t *document = NULL;
	size_t part = 0;

	if (dirfd < 0)
		return fail_errno(failure, errno, "images-directory", directory, NULL, "cannot be opened");
	while (what && part < ARRAY_SIZE(names) && strcmp(what, names[part]))
		part++;
	if (part == ARRAY_SIZE(names) && strcmp(what, "json"))
		return fail(failure, EINVAL, "usage", what, "ps, fds, mems, rss or json",
			    "is nothing that crit x shows");
	int error = show_read(dirfd, failure, &document);
	if (error)
		return error;
	if (!what)
		show_print(document);
	else if (part < ARRAY_SIZE(names))
		show_print_part(document, part);
	else
		show_print_json(document);
	json_decref(document);
	return 0;
}

static int run(const char *verb, struct arguments *arguments, struct failure *failure)
{
	if (!strcmp(verb, "decode"))
		return decode(arguments, failure);
	if (!strcmp(verb, "encode"))
		return encode(arguments, failure);
	if (!strcmp(verb, "show") && arguments->word_count == 1) {
		arguments->input = arguments->words[0];
		arguments->pretty = true;
		return decode(arguments, failure);
	}
	if (!strcmp(verb, "info") && arguments->word_count == 1)
		return info(arguments->words[0], failure);
	if (!strcmp(verb, "x") && arguments->word_count >= 1 && arguments->word_count <= 2)
		return explore(arguments, failure);
	return fail(failure, EINVAL, "usage", verb, "crit --help lists them", "no such command with these arguments");
}

int main(int count, char **values)
{
	static const struct option options[] = {{"in", required_argument, NULL, 'i'},
						{"out", required_argument, NULL, 'o'},
						{"pretty", no_argument, NULL, 'p'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	struct arguments arguments = {0};
	struct failure failure = {0};

	for (int option; (option = getopt_long(count, values, "i:o:h", options, NULL)) != -1;) {
		if (option == 'i')
			arguments.input = optarg;
		else if (option == 'o')
			arguments.output = optarg;
		else if (option == 'p')
			arguments.pretty = true;
		else
			return usage(option == 'h' ? stdout : stderr);
	}
	if (optind == count)
		return usage(stderr);
	arguments.words = values + optind + 1;
	arguments.word_count = count - optind - 1;
	if (run(values[optind], &arguments, &failure) < 0)
		return report(&failure);
	if (fflush(stdout)) {
		fputs("crit: standard output: cannot be written\n", stderr);
		return 1;
	}
	return 0;
}
