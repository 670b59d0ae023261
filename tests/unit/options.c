/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: every option of CRIU 4.2 is known, values are checked, later features are refused by name. */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "cmd/option_check.h"
#include "cmd/option_values.h"
#include "cmd/options.h"

enum { MOST_WORDS = 64 };

/* One parsed line, with the memory that the options point into. */
struct parsed {
	struct options options;
	struct failure failure;
	char text[2048];
	char *words[MOST_WORDS + 1];
	int result;
};

/* Parses "criu <line>"; words are separated by one space. */
static void parse(struct parsed *parsed, const char *line)
{
	int count = 0;

	memset(parsed, 0, sizeof(*parsed));
	snprintf(parsed->text, sizeof(parsed->text), "criu --no-default-config%s%s", *line ? " " : "", line);
	for (char *rest = parsed->text, *word; (word = strsep(&rest, " "));) {
		assert_true(count < MOST_WORDS);
		parsed->words[count++] = word;
	}
	options_init(&parsed->options);
	parsed->result = options_parse(count, parsed->words, &parsed->options, &parsed->failure);
}

static void finish(struct parsed *parsed)
{
	options_free(&parsed->options);
}

static void test_defaults(void **state)
{
	struct parsed parsed;

	parse(&parsed, "dump");
	assert_int_equal(parsed.result, 0);
	assert_string_equal(parsed.options.verb, "dump");
	assert_int_equal(parsed.options.tree, 0);
	assert_int_equal(parsed.options.timeout_seconds, TIMEOUT_DEFAULT);
	assert_int_equal(parsed.options.ghost_limit_bytes, 1 << 30);
	assert_int_equal(parsed.options.verbosity, LOG_LEVEL_WARN);
	assert_int_equal(parsed.options.positional_count, 0);
	assert_null(parsed.options.later);
	finish(&parsed);
}

static void test_values(void **state)
{
	struct parsed parsed;

	parse(&parsed, "-t 12 dump -D /i --work-dir=/w -R -j --tcp-established --ghost-limit 3M --timeout=0 -o log "
		       "--action-script a --action-script b --network-lock iptables --format criu -l --link-remap");
	assert_int_equal(parsed.result, 0);
	const struct options *options = &parsed.options;
	assert_string_equal(options->verb, "dump");
	assert_int_equal(options->tree, 12);
	assert_string_equal(options->images_dir, "/i");
	assert_string_equal(options->work_dir, "/w");
	assert_true(options->leave_running && options->shell_job && options->tcp_established);
	assert_true(options->link_remap && options->format_plain);
	assert_false(options->leave_stopped || options->tcp_close);
	assert_int_equal(options->ghost_limit_bytes, 3 << 20);
	assert_int_equal(options->timeout_seconds, 0);
	assert_string_equal(options->log_file, "log");
	assert_int_equal(options->action_scripts.count, 2);
	assert_string_equal(options->action_scripts.items[1], "b");
	assert_int_equal(options->network_lock, NETWORK_LOCK_NFTABLES);
	finish(&parsed);
}

static void test_verbosity(void **state)
{
	static const struct {
		const char *line;
		int level;
	} cases[] = {{"dump -v", 3},  {"dump -vv", 4},         {"dump -vvvvv", 4}, {"dump -v4", 4},
		     {"dump -v0", 0}, {"dump --verbosity", 3}, {"dump -v -v", 4},  {"dump --verbosity=1", 1}};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct parsed parsed;

		parse(&parsed, cases[i].line);
		assert_int_equal(parsed.result, 0);
		assert_int_equal(parsed.options.verbosity, cases[i].level);
		finish(&parsed);
	}
}

static void test_negation(void **state)
{
	struct parsed parsed;

	parse(&parsed, "dump --shell-job --no-shell-job --no-lazy-pages");
	assert_int_equal(parsed.result, -EINVAL); /* lazy-pages has no such form */
	finish(&parsed);
	parse(&parsed, "dump --shell-job --no-shell-job --no-track-mem --tcp-close");
	assert_int_equal(parsed.result, 0);
	assert_false(parsed.options.shell_job);
	assert_true(parsed.options.tcp_close);
	assert_null(parsed.options.later);
	finish(&parsed);
}

static void test_exec_command(void **state)
{
	struct parsed parsed;

	parse(&parsed, "restore -d --exec-cmd -- ls -l --tree");
	assert_int_equal(parsed.result, 0);
	assert_string_equal(parsed.options.verb, "restore");
	assert_true(parsed.options.exec_command && parsed.options.restore_detached);
	assert_int_equal(parsed.options.positional_count, 3);
	assert_string_equal(parsed.options.positional[0], "ls");
	assert_string_equal(parsed.options.positional[2], "--tree");
	assert_null(parsed.options.positional[3]);
	finish(&parsed);
}

static void test_refused_values(void **state)
{
	static const char *const lines[] = {
		"dump --bogus",
		"dump -t",
		"dump -t x",
		"dump -t 0",
		"dump -t -3",
		"dump -t 99999999999",
		"dump --leave-running=1",
		"dump --ghost-limit 1X",
		"dump --timeout 1s",
		"dump --network-lock x",
		"dump --format x",
		"dump -Q",
		"dump -t 12x",
		"dump -v9x",
		"dump --manage-cgroups=x",
		"dump --ghost-limit 99999999999G",
	};

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		struct parsed parsed;

		parse(&parsed, lines[i]);
		assert_int_equal(parsed.result, -EINVAL);
		assert_true(failure_is_set(&parsed.failure));
		assert_true(parsed.failure.cause[0]);
		finish(&parsed);
	}
}

static void test_json_is_known_after_failure(void **state)
{
	struct parsed parsed;

	static const struct {
		const char *line;
		bool json;
	} cases[] = {
		{"dump --json --bogus", true},     {"dump --bogus --json", true}, {"dump -t abc --json", true},
		{"dump --bogus -- --json", false}, {"dump --bogus", false},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		parse(&parsed, cases[i].line);
		assert_int_equal(parsed.result, -EINVAL);
		assert_int_equal(parsed.options.json, cases[i].json);
		finish(&parsed);
	}
}

/* The long names and letters of CRIU 4.2; '+' = has a --no- form, ':' = takes a value, '?' = may take one. */
static const char *const known[] = {
	"action-script:",
	"address:",
	"all",
	"allow-uprobes+",
	"auto-dedup+",
	"cgroup-dump-controller:",
	"cgroup-props:",
	"cgroup-props-file:",
	"cgroup-root:",
	"cgroup-yard:",
	"close:",
	"config:",
	"cpu-cap?",
	"daemon+",
	"deprecated+",
	"display-stats+",
	"empty-ns:",
	"enable-external-masters",
	"enable-external-sharing",
	"enable-fs:",
	"evasive-devices+",
	"exec-cmd",
	"experimental+",
	"ext-mount-map:",
	"external:",
	"extra+",
	"feature:",
	"file-locks+",
	"file-validation:",
	"force-irmap+",
	"freeze-cgroup:",
	"ghost-fiemap+",
	"ghost-limit:",
	"help",
	"images-dir:",
	"inherit-fd:",
	"irmap-scan-path:",
	"join-ns:",
	"lazy-pages",
	"leave-running",
	"leave-stopped",
	"libdir:",
	"link-remap+",
	"log-file:",
	"log-pid+",
	"lsm-mount-context:",
	"lsm-profile:",
	"manage-cgroups?",
	"mntns-compat-mode+",
	"ms",
	"network-lock:",
	"no-default-config",
	"page-server+",
	"pidfile:",
	"port:",
	"pre-dump-mode:",
	"prev-images-dir:",
	"ps-socket:",
	"restore-detached+",
	"restore-sibling+",
	"root:",
	"shell-job+",
	"skip-file-rwx-check+",
	"skip-in-flight+",
	"skip-mnt:",
	"status-fd:",
	"stream+",
	"tcp-close+",
	"tcp-established+",
	"timeout:",
	"tls+",
	"tls-cacert:",
	"tls-cacrl:",
	"tls-cert:",
	"tls-key:",
	"tls-no-cn-verify",
	"track-mem+",
	"tree:",
	"unprivileged+",
	"verbosity?",
	"version",
	"veth-pair:",
	"weak-sysctls+",
	"work-dir:",
};

static const struct option_row *row_of(const char *name)
{
	size_t length = strcspn(name, ":?+");

	for (size_t i = 0; i < option_row_count; i++)
		if (strlen(option_rows[i].name) == length && !strncmp(option_rows[i].name, name, length))
			return &option_rows[i];
	return NULL;
}

static void test_every_known_option_is_there(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		const struct option_row *row = row_of(known[i]);

		if (!row)
			print_error("no option %s\n", known[i]);
		assert_non_null(row);
		assert_int_equal(row->argument, strchr(known[i], ':')   ? ARGUMENT_REQUIRED
						: strchr(known[i], '?') ? ARGUMENT_OPTIONAL
									: ARGUMENT_NONE);
		assert_int_equal(row->negatable, strchr(known[i], '+') != NULL);
	}
}

static void test_names_are_unique(void **state)
{
	for (size_t i = 0; i < option_row_count; i++)
		for (size_t j = 0; j < i; j++) {
			assert_string_not_equal(option_rows[i].name, option_rows[j].name);
			/* One letter may stand for two options only if no verb knows both. */
			if (option_rows[i].short_name && option_rows[i].short_name == option_rows[j].short_name)
				assert_int_equal(option_rows[i].verbs & option_rows[j].verbs, 0);
		}
}

/* The lines that LXC 5 runs, word by word: they parse, and are refused for a feature, not for a letter. */
static void test_lxc_command_lines(void **state)
{
	static const char *const lines[] = {
		"dump --tcp-established --file-locks --link-remap --manage-cgroups=full --ext-mount-map auto "
		"--enable-external-sharing --enable-external-masters --enable-fs hugetlbfs --enable-fs tracefs -D I "
		"-o I/dump.log --cgroup-root memory:/lxc.payload.l1 --cgroup-root name=systemd:/lxc.payload.l1 -v4 -t "
		"77 "
		"--skip-in-flight --freeze-cgroup /sys/fs/cgroup/freezer//lxc.payload.l1 "
		"--ext-mount-map /dev/console:console --external tty[8800:1a] --force-irmap",
		"restore --tcp-established --file-locks --link-remap --manage-cgroups=full --ext-mount-map auto "
		"--enable-external-sharing --enable-external-masters --enable-fs hugetlbfs --enable-fs tracefs -D I "
		"-o I/restore.log -v4 --root /usr/lib/x86_64-linux-gnu/lxc/rootfs --restore-detached --restore-sibling "
		"--inherit-fd fd[7]:tty[8800:1a] --ext-mount-map console:[/dev/pts/0] "
		"--external veth[eth0]:vethXY@docker0 --lsm-profile apparmor:unconfined",
	};

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		struct parsed parsed;

		parse(&parsed, lines[i]);
		assert_int_equal(parsed.result, 0);
		assert_int_equal(parsed.options.verbosity, 4);
		assert_true(parsed.options.tcp_established);
		assert_int_equal(options_refuse_later(&parsed.options, &parsed.failure), -EOPNOTSUPP);
		assert_string_equal(parsed.failure.object, "--manage-cgroups=full");
		finish(&parsed);
	}
}

static void test_later_features(void **state)
{
	struct parsed parsed;
	char line[256];

	parse(&parsed, "dump -t 5 --root / --tls");
	assert_int_equal(parsed.result, 0);
	assert_int_equal(options_refuse_later(&parsed.options, &parsed.failure), -EOPNOTSUPP);
	assert_string_equal(failure_line(&parsed.failure, line, sizeof(line)),
			    "--root: comes with containers; see README, what is supported");
	finish(&parsed);
	/* A verb that does not look at the option is not stopped by it. */
	parse(&parsed, "show --veth-pair a=b --manage-cgroups=full");
	assert_int_equal(parsed.result, 0);
	assert_int_equal(options_refuse_later(&parsed.options, &parsed.failure), 0);
	finish(&parsed);
	parse(&parsed, "dump --manage-cgroups=ignore --evasive-devices --force-irmap --no-weak-sysctls");
	assert_int_equal(options_refuse_later(&parsed.options, &parsed.failure), 0);
	finish(&parsed);
}

/* The failure of a line, "" if it has none. */
static void check_line(const char *line, const char *wanted)
{
	struct parsed parsed;
	char text[400];

	parse(&parsed, line);
	assert_int_equal(parsed.result, 0);
	int r = options_check(&parsed.options, verb_find(parsed.options.verb), &parsed.failure);
	assert_int_equal(r < 0, *wanted != 0);
	assert_string_equal(r < 0 ? failure_line(&parsed.failure, text, sizeof(text)) : "", wanted);
	finish(&parsed);
}

/* What would do nothing is told; what asks for what happens anyway passes. */
static void test_options_without_effect(void **state)
{
	check_line("dump -t 5 --tls", "--tls: has no effect alone; add --page-server to send memory to a server, or "
				      "--lazy-pages to serve it");
	check_line("dump -t 5 --page-server --port 9 --tls --tls-key k", "");
	check_line("dump -t 5 --lazy-pages --port 9 --status-fd 3 --tls", "");
	check_line("dump -t 5 --page-server --no-tls --tls-key k", "--tls-key: has no effect alone; add --tls");
	check_line("dump -t 5 --status-fd 3",
		   "--status-fd: has no effect alone; only a dump with --lazy-pages serves anything");
	check_line("pre-dump -t 5 --address 10.0.0.2", "--address: has no effect alone; add --page-server");
	check_line("lazy-pages --address 10.0.0.2 --port 9",
		   "--address: has no effect alone; add --page-server; without it memory comes from the images");
	check_line("dump -t 5 --page-server --lazy-pages --port 9",
		   "--page-server: contradicts --lazy-pages; send the memory to a server that waits, or keep it and "
		   "serve it: give one of the two");
	check_line("page-server --port 9 --ps-socket 3",
		   "--port: contradicts --ps-socket; the descriptor is the connection");
	check_line("restore --track-mem", "--track-mem: has no effect on restore; it is an option of dump, pre-dump");
	check_line("restore --tls", "--tls: has no effect on restore; it is an option of dump, pre-dump, receive, "
				    "page-server, lazy-pages");
	check_line("dump -t 5 --no-track-mem --no-restore-detached", "");
	check_line("restore --force-irmap", "");
	check_line("dedup -D x --json", "");
	check_line("migrate -t 5 --psk-file k tcp://b",
		   "--psk-file: has no effect on this way to the other machine; it "
		   "is for addresses that begin with tls://");
	check_line("migrate -t 5 --psk-file k tls://b", "");
	check_line("receive --stdio --listen b:1",
		   "--stdio: contradicts --listen; ssh is the connection, and encrypts it");
	check_line("dump -t 5 --stream", "");
	check_line("restore --stream", "");
	check_line("dump -t 5 --no-stream --track-mem", "");
	check_line(
		"dump -t 5 --stream --track-mem",
		"--stream: contradicts --track-mem; a streamer gives its images to one restore and to no later dump");
	check_line("pre-dump -t 5 --stream", "--stream: cannot be with pre-dump, whose images a later dump needs; a "
					     "streamer gives its images to one restore and to no later dump");
	check_line("restore --stream --auto-dedup",
		   "--stream: contradicts --auto-dedup; there are no files whose pages could be freed");
	/* lxc-checkpoint's, as far as they are not for containers. */
	check_line(
		"pre-dump --tcp-established --file-locks --link-remap -D I -o I/dump.log -v4 -t 5 --skip-in-flight "
		"--force-irmap --track-mem --leave-running --ghost-limit 1M --page-server --address 10.0.0.2 --port 9",
		"");
	check_line("restore --tcp-established --file-locks --link-remap -D I -o I/restore.log -v4 --restore-detached "
		   "--restore-sibling",
		   "");
}

static void test_sizes(void **state)
{
	uint64_t bytes;

	assert_int_equal(parse_size("17", &bytes), 0);
	assert_int_equal(bytes, 17);
	assert_int_equal(parse_size("4G", &bytes), 0);
	assert_true(bytes == UINT64_C(4) << 30);
	assert_int_equal(parse_size("", &bytes), -EINVAL);
	assert_int_equal(parse_size("K", &bytes), -EINVAL);
	assert_int_equal(parse_size("1k", &bytes), -EINVAL);
	assert_int_equal(parse_size("18446744073709551616", &bytes), -EINVAL);
	assert_int_equal(parse_size("18446744073709551615", &bytes), 0);
	assert_int_equal(parse_size("17179869184G", &bytes), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_verbosity),
		cmocka_unit_test(test_negation),
		cmocka_unit_test(test_exec_command),
		cmocka_unit_test(test_refused_values),
		cmocka_unit_test(test_json_is_known_after_failure),
		cmocka_unit_test(test_every_known_option_is_there),
		cmocka_unit_test(test_names_are_unique),
		cmocka_unit_test(test_lxc_command_lines),
		cmocka_unit_test(test_later_features),
		cmocka_unit_test(test_options_without_effect),
		cmocka_unit_test(test_sizes),
	};

	unsetenv("CRIU_CONFIG_FILE");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
