/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the user asked for: the command line and the config files as one structure, made from options.def and const
 * once options_parse() has returned.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"
#include "model/options.h"

/* Which commands an option has a meaning for. */
enum verb_bit {
	VERB_DUMP = 1 << 0,
	VERB_RESTORE = 1 << 1,
	VERB_CHECK = 1 << 2,
	VERB_KILL = 1 << 3,
	VERB_RESUME = 1 << 4,
	VERB_SHOW = 1 << 5,
	VERB_EXPLAIN = 1 << 6,
	VERB_PRE_DUMP = 1 << 7,
	VERB_SERVICE = 1 << 8,
	VERB_MIGRATE = 1 << 9,
	VERB_RECEIVE = 1 << 10,
	VERB_PAGE_SERVER = 1 << 11,
	VERB_LAZY_PAGES = 1 << 12,
	VERB_DEDUP = 1 << 13,
	VERB_ALL_VERBS = ~0,
};

#define TIMEOUT_DEFAULT UINT32_MAX

enum option_argument { ARGUMENT_NONE, ARGUMENT_REQUIRED, ARGUMENT_OPTIONAL };

/* Strings in the order in which they were given. */
struct text_list {
	char **items;
	size_t count, capacity;
};

struct option_row;

/* Rows of option_rows, one bit each. */
enum { OPTION_SET_WORDS = 4, OPTION_SET_WORD_BITS = 64 };
struct option_set {
	uint64_t words[OPTION_SET_WORDS];
};

struct options {
	struct option_set commanded; /* by the command line; a --no- form takes its option out */
	struct option_set given;     /* by the command line or a config file */

	/* Which tree, which images */
	pid_t tree;             /* 0 = not given */
	const char *images_dir; /* NULL = not given */
	const char *work_dir;   /* NULL = the images directory */

	/* What happens to the tree */
	bool leave_running, leave_stopped;
	bool restore_detached, restore_sibling;
	const char *pidfile; /* relative to the work directory; NULL = none */
	bool exec_command;   /* execute positional[] after the restore */
	int *close_fds;      /* descriptors to close before a restore */
	size_t close_fd_count, close_fd_capacity;
	unsigned timeout_seconds; /* 0 = no limit, TIMEOUT_DEFAULT = not given */

	/* Increments */
	bool track_mem;
	const char *prev_images_dir; /* relative to the images directory; NULL = none */
	enum pre_dump_mode pre_dump_mode;
	bool auto_dedup;

	/* What may be in the tree */
	bool shell_job;
	bool tcp_established, tcp_close, skip_in_flight;
	enum network_lock_method network_lock;
	bool link_remap;
	uint64_t ghost_limit_bytes;
	struct text_list action_scripts;
	bool format_plain; /* --format criu */

	/* Migration */
	struct text_list addresses; /* that move with the tree; of a page server: the last one */
	unsigned downtime_ms;
	int at_timeout;                /* enum migrate_at_timeout */
	unsigned link_timeout_seconds; /* 0 = the verb's own */
	bool throttle;
	bool post_copy;
	bool status, resume_tree, abort_tree; /* of a migration that was cut off */
	bool dry_run, send_files;
	struct text_list skip_checks;
	unsigned connections; /* 0 = as many as the way there is good for */
	int compress;         /* enum compress_mode */
	uint64_t bandwidth;   /* bytes a second; 0 = no limit */
	bool insecure;
	const char *psk_file;
	bool tls, tls_no_cn_verify;
	const char *tls_cacert, *tls_cacrl, *tls_cert, *tls_key;
	const char *remote_criu;
	const char *listen;
	bool once, stdio;
	const char *join;

	/* Page servers */
	bool page_server, lazy_pages, daemon, stream;
	unsigned port; /* 0 = not given */
	int ps_socket; /* -1 = not given */
	int status_fd; /* -1 = not given */

	/* What is told */
	const char *log_file; /* relative to the work directory; NULL = standard error */
	int verbosity;        /* enum log_level */
	bool log_pid;
	bool display_stats;
	bool json;
	bool show_plan;
	bool help, version;

	/* check */
	bool all;
	struct text_list features;

	/* Config files */
	const char *config; /* NULL = $CRIU_CONFIG_FILE or none */
	bool no_default_config;
	struct text_list config_texts; /* of the files that were read; strings above point into them */

	const char *die_at; /* NULL = never */

	const char *verb;  /* the first word that is no option; NULL = none */
	char **positional; /* the words after the verb, NULL at the end */
	size_t positional_count;

	/* The first option of a feature that is not there yet, of which the verb must not run without; NULL = none */
	const struct option_row *later;
	const char *later_value; /* what was asked for of an option that knows some values; NULL = all of it */
};

/* One row of options.def. */
struct option_row {
	const char *name;
	char short_name; /* 0 = none */
	enum option_argument argument;
	const char *value_name; /* for help; "" = no argument */
	bool negatable;
	unsigned verbs;        /* enum verb_bit */
	const char *rpc_field; /* field of criu_opts with the same meaning; "" = none */
	/* Writes @value (NULL: none given) to @field. NULL: nothing to store. */
	int (*store)(struct options *options, const struct option_row *row, void *field, const char *value,
		     struct failure *failure);
	size_t field_offset;
	const char *later; /* the feature it comes with; NULL = it works */
	const char *help;
};

extern const struct option_row option_rows[];
extern const size_t option_row_count;

/* The row of a long name, or NULL. */
const struct option_row *option_find(const char *name);
bool option_set_has(const struct option_set *set, const struct option_row *row);

/*
 * Reads the config files and the command line. @argv may be permuted. Strings of *ret_options point into @argv and
 * what options_free() frees. Fills ret_options->json before a failure too, so that it can be told in the right form.
 * Returns 0 or a failure.
 */
int options_parse(int argc, char **argv, struct options *ret_options, struct failure *failure);

/*
 * Sets one option by its long name (also "no-<name>"), as config files and RPC do.
 *
 * @verb   enum verb_bit of the command that is being run; decides whether an option of a later feature is refused
 * @value  NULL = none given
 * Returns 0 or a failure.
 */
int options_set(struct options *options, unsigned verb, const char *name, const char *value, struct failure *failure);

/* Fails when an option of a later feature was given. Returns 0 or a failure. */
int options_refuse_later(const struct options *options, struct failure *failure);

/* The defaults: what an empty command line means. */
void options_init(struct options *options);
void options_free(struct options *options);
/* --timeout where it limits the time to stop a tree, with its default. */
unsigned options_stop_seconds(const struct options *options);
