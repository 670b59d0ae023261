/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/proc.h"
#include "migrate/address.h"
#include "migrate/fetch.h"

static const char journal_directory[] = "/run/criu";
static const char *const role_names[] = {"source", "destination"};
static const char *const state_names[JOURNAL_STATE_COUNT] = {"copying", "deciding", "fetching"};

const char *journal_state_name(enum journal_state state)
{
	return state_names[state];
}

static int find_name(const char *const *names, size_t count, const char *name)
{
	for (size_t i = 0; name && i < count; i++)
		if (!strcmp(names[i], name))
			return i;
	return -1;
}

/* Pids mean nothing in another pid namespace, addresses nothing in another network, and /run may be shared with one. */
static uint64_t own_namespace(const char *path)
{
	struct stat stat_buffer;

	return stat(path, &stat_buffer) ? 0 : stat_buffer.st_ino;
}

static uint64_t pid_namespace(void)
{
	return own_namespace("/proc/self/ns/pid");
}

static uint64_t network_namespace(void)
{
	return own_namespace("/proc/self/ns/net");
}

static int open_directory(struct failure *failure, bool make, int *ret_fd)
{
	if (make && mkdir(journal_directory, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, errno, "journal", journal_directory, NULL, "cannot make the directory");
	int fd = open(journal_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && (make || errno != ENOENT))
		return fail_errno(failure, errno, "journal", journal_directory, NULL, "cannot open the directory");
	*ret_fd = fd;
	return fd < 0 ? -ENOENT : 0;
}

static void file_name(const struct journal *journal, const char *suffix, char *buffer, size_t size)
{
	snprintf(buffer, size, "migration-%s-%.32s.json%s", role_names[journal->role], journal->session, suffix);
}

/* What a file is called until it is complete. Its writer may be killed: then the next who looks removes it. */
#define UNFINISHED ".%lx.%d.new"

static bool is_left_behind(const char *name)
{
	const char *suffix = strstr(name, ".json");
	unsigned long namespace;
	int pid, length = 0;

	return suffix && sscanf(suffix, ".json" UNFINISHED "%n", &namespace, &pid, &length) == 2 && length &&
	       !suffix[length] && namespace == pid_namespace() && kill(pid, 0) < 0 && errno == ESRCH;
}

int journal_write(struct failure *failure, const struct journal *journal)
{
	char name[128], temporary[160], suffix[48];
	_cleanup_fd_ int directory = -1, fd = -1;
	int error = open_directory(failure, true, &directory);

	if (error < 0)
		return error;
	file_name(journal, "", name, sizeof(name));
	snprintf(suffix, sizeof(suffix), UNFINISHED, (unsigned long)pid_namespace(), getpid());
	file_name(journal, suffix, temporary, sizeof(temporary));
	json_t *object =
		json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:I, s:i, s:I, s:I}", "role", role_names[journal->role],
			  "state", state_names[journal->state], "session", journal->session, "secret", journal->secret,
			  "peer", journal->peer, "addresses", journal->addresses, "pid", (int)journal->pid,
			  "start_time", (json_int_t)journal->start_time, "criu", (int)journal->criu, "pid_namespace",
			  (json_int_t)pid_namespace(), "network", (json_int_t)network_namespace());
	_cleanup_free_ char *text = object ? json_dumps(object, JSON_INDENT(1)) : NULL;
	json_decref(object);
	fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	error = fd < 0 ? -errno : text ? write_full(fd, text, strlen(text)) : -ENOMEM;
	if (!error && renameat(directory, temporary, directory, name) < 0)
		error = -errno;
	return error ? fail_errno(failure, error, "journal", name, NULL, "cannot write down the state of the migration")
		     : 0;
}

static void remove_named(const char *name)
{
	struct failure ignored = {};
	_cleanup_fd_ int directory = -1;

	if (!open_directory(&ignored, false, &directory))
		unlinkat(directory, name, 0);
}

void journal_remove(const struct journal *journal)
{
	char name[128];

	file_name(journal, "", name, sizeof(name));
	remove_named(name);
}

/* A file below a directory of root's: wrong content is damage, not an attack, and is passed over. */
static bool read_journal(int directory, const char *name, struct journal *journal)
{
	_cleanup_free_ char *text = NULL;
	const char *role, *state, *session, *secret, *peer, *addresses = "";
	json_int_t start_time, namespace, network = 0;
	int pid, criu;

	if (read_text_at(directory, name, &text, NULL) < 0)
		return false;
	json_t *object = json_loads(text, 0, NULL);
	bool good = object && !json_unpack(object, "{s:s, s:s, s:s, s:s, s:s, s?s, s:i, s:I, s:i, s:I, s?I}", "role",
					   &role, "state", &state, "session", &session, "secret", &secret, "peer",
					   &peer, "addresses", &addresses, "pid", &pid, "start_time", &start_time,
					   "criu", &criu, "pid_namespace", &namespace, "network", &network);
	if (good) {
		int role_index = find_name(role_names, ARRAY_SIZE(role_names), role);
		int state_index = find_name(state_names, JOURNAL_STATE_COUNT, state);
		good = role_index >= 0 && state_index >= 0 && (uint64_t) namespace == pid_namespace();
		*journal = (struct journal){.role = role_index,
					    .state = state_index,
					    .pid = pid,
					    .start_time = start_time,
					    .criu = criu,
					    .network = network};
		snprintf(journal->session, sizeof(journal->session), "%s", session);
		snprintf(journal->secret, sizeof(journal->secret), "%s", secret);
		snprintf(journal->peer, sizeof(journal->peer), "%s", peer);
		snprintf(journal->addresses, sizeof(journal->addresses), "%s", addresses);
	}
	json_decref(object);
	return good;
}

/*
 * Nobody works on it, and nothing is left to decide: the tree is not what it was, or had not been given away yet (then
 * it runs on in the source, and nothing of it is at the destination).
 */
static bool is_stale(const struct journal *journal)
{
	struct proc_stat stat;

	if (!kill(journal->criu, 0) || errno == EPERM)
		return false;
	if (journal->state == JOURNAL_COPYING)
		return true;
	_cleanup_fd_ int fd = proc_open(journal->pid);
	return fd < 0 || proc_read_stat(fd, "stat", &stat) < 0 ||
	       (journal->start_time && stat.start_time != journal->start_time);
}

/*
 * A criu that was killed could not take back the addresses that it had given this machine for its tree. Returns whether
 * nothing is left to do: those of another network namespace are for a criu there.
 */
static bool lose_addresses(const struct journal *journal)
{
	struct failure failure = {};
	char line[512];

	if (journal->role != JOURNAL_DESTINATION || !journal->addresses[0])
		return true;
	if (journal->network != network_namespace())
		return false;
	if (journal_change_addresses(journal, address_remove, &failure) < 0)
		log_warn("%s", failure_line(&failure, line, sizeof(line)));
	else
		log_warn("process %d did not come, and its addresses are removed here: %s", journal->pid,
			 journal->addresses);
	return true;
}

int journal_list(struct failure *failure, void (*found)(void *context, const struct journal *journal), void *context)
{
	_cleanup_fd_ int directory = -1;
	int error = open_directory(failure, false, &directory);

	if (error < 0)
		return error == -ENOENT ? 0 : error;
	_cleanup_fd_ int listing = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_dir_ DIR *entries = listing < 0 ? NULL : fdopendir(listing);
	struct dirent *entry;
	if (entries)
		listing = -1; /* closed with the stream */
	while (entries && (entry = readdir(entries))) {
		struct journal journal;
		size_t length = strlen(entry->d_name);
		if (is_left_behind(entry->d_name))
			unlinkat(directory, entry->d_name, 0);
		if (strncmp(entry->d_name, "migration-", 10) || length < 5 ||
		    strcmp(entry->d_name + length - 5, ".json") || !read_journal(directory, entry->d_name, &journal))
			continue;
		if (!is_stale(&journal))
			found(context, &journal);
		else if (lose_addresses(&journal)) {
			if (journal.role == JOURNAL_DESTINATION)
				fetch_directory_remove(journal.session);
			unlinkat(directory, entry->d_name, 0);
		}
	}
	return 0;
}

static void pass_over(void *context, const struct journal *journal)
{
}

void journal_clean(void)
{
	struct failure ignored = {};

	journal_list(&ignored, pass_over, NULL);
}

struct search {
	enum journal_role role;
	pid_t pid;           /* 0 = any */
	const char *session; /* NULL = any */
	struct journal *journal;
	bool found;
};

static void compare(void *context, const struct journal *journal)
{
	struct search *search = context;

	if (journal->role != search->role || (search->pid && journal->pid != search->pid) ||
	    (search->session && strcmp(journal->session, search->session) != 0))
		return;
	*search->journal = *journal;
	search->found = true;
}

int journal_find_session(struct failure *failure, enum journal_role role, const char *session,
			 struct journal *ret_journal)
{
	struct search search = {.role = role, .session = session, .journal = ret_journal};
	int error = journal_list(failure, compare, &search);

	return error ? error : search.found ? 0 : -ENOENT;
}

void journal_set_secret(struct journal *journal, const uint8_t secret[SESSION_SECRET_BYTES])
{
	for (size_t i = 0; i < SESSION_SECRET_BYTES; i++)
		snprintf(journal->secret + 2 * i, 3, "%02x", secret[i]);
}

int journal_secret(const struct journal *journal, uint8_t ret_secret[SESSION_SECRET_BYTES])
{
	if (strlen(journal->secret) != 2 * SESSION_SECRET_BYTES)
		return -EINVAL;
	for (size_t i = 0; i < SESSION_SECRET_BYTES; i++) {
		unsigned byte;
		if (sscanf(journal->secret + 2 * i, "%2x", &byte) != 1)
			return -EINVAL;
		ret_secret[i] = (uint8_t)byte;
	}
	return 0;
}

int journal_find(struct failure *failure, enum journal_role role, pid_t pid, struct journal *ret_journal)
{
	struct search search = {.role = role, .pid = pid, .journal = ret_journal};
	int error = journal_list(failure, compare, &search);

	return error ? error : search.found ? 0 : -ENOENT;
}

/* ---- addresses ---- */

void journal_set_addresses(struct journal *journal, const struct moving_address *addresses, size_t count)
{
	char text[ADDRESS_TEXT_BYTES];
	size_t used = 0;

	journal->addresses[0] = '\0';
	for (size_t i = 0; i < count && used + sizeof(text) < sizeof(journal->addresses); i++)
		used += (size_t)snprintf(journal->addresses + used, sizeof(journal->addresses) - used, "%s ",
					 address_text(&addresses[i], text));
}

int journal_change_addresses(const struct journal *journal,
			     int (*change)(struct failure *failure, const struct moving_address *address),
			     struct failure *failure)
{
	_cleanup_free_ char *texts = xstrdup(journal->addresses);
	char *rest = texts, *text;
	struct moving_address address;
	int error = 0;

	while (!error && (text = strsep(&rest, " ")) && *text) {
		error = address_parse(failure, text, &address);
		if (!error)
			error = change(failure, &address);
	}
	return error;
}

int journal_take_addresses_back(const struct journal *journal, struct failure *failure)
{
	int error = journal_change_addresses(journal, address_add, failure);

	return error ? error : journal_change_addresses(journal, address_announce, failure);
}
