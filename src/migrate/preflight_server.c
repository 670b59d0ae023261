/* SPDX-License-Identifier: Apache-2.0 */
/* The destination's half of the preflight: everything that would fail here, in one list. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/fd.h"
#include "kernel/features.h"
#include "kernel/proc.h"
#include "kinds/fd/build_id.h"
#include "migrate/address.h"
#include "migrate/file_transfer.h"
#include "migrate/preflight.h"
#include "migrate/preflight_cpu.h"
#include "migrate/protocol.h"

enum { NAMED_PIDS = 8 };

/* A file that was asked for. */
struct wanted_file {
	MigrateFile *file; /* a copy in the server's arena */
	bool arrived;
};

struct preflight_server {
	struct preflight_server_options options;
	struct arena arena;
	struct wanted_file *wanted; /* by index of the file in the request that asked for it */
	size_t wanted_count;
	struct file_arrival *arrival;
	uint32_t arrival_index;
};

/* One answer in the making. */
struct answering {
	struct preflight_server *server;
	const PreflightRequest *request;
	struct arena arena;
	PreflightAnswer answer;
	size_t check_capacity, file_capacity;
};

struct preflight_server *preflight_server_new(const struct preflight_server_options *options)
{
	struct preflight_server *server = xcalloc(1, sizeof(*server));

	server->options = *options;
	return server;
}

void preflight_server_free(struct preflight_server **server)
{
	if (!*server)
		return;
	file_arrival_free(&(*server)->arrival);
	arena_free(&(*server)->arena);
	free((*server)->wanted);
	free(*server);
	*server = NULL;
}

/* ---- verdicts ---- */

static bool is_skipped(const PreflightRequest *request, const char *name)
{
	for (size_t i = 0; i < request->n_skip; i++)
		if (!strcmp(request->skip[i], name))
			return true;
	return false;
}

/* Adds the failure as a line of check @name, and forgets it. */
static void add_check(struct answering *answering, const char *name, struct failure *found)
{
	const struct preflight_server_options *options = &answering->server->options;
	MigrateCheck *check = arena_message(&answering->arena, MigrateCheck, migrate_check);
	PreflightAnswer *answer = &answering->answer;
	struct preflight_check told = {.name = name, .failure = *found};

	told.verdict = is_skipped(answering->request, name) ? PREFLIGHT_SKIPPED : PREFLIGHT_FAILED;
	check->name = (char *)name;
	check->verdict = told.verdict;
	check->code = arena_strdup(&answering->arena, found->code);
	check->object = arena_strdup(&answering->arena, found->object);
	check->cause = arena_strdup(&answering->arena, found->cause);
	check->hint = arena_strdup(&answering->arena, found->hint);
	ARRAY_GROW(answer->checks, answer->n_checks, answering->check_capacity);
	answer->checks[answer->n_checks++] = check;
	if (options->check)
		options->check(options->context, &told);
	failure_clear(found);
}

static void check_cpu(struct answering *answering)
{
	const MigrateCpu *wanted = answering->request->cpu;
	struct cpu_features needed = {.xfeatures = wanted->xfeatures}, here;
	struct failure found = {};
	char names[200];

	for (size_t i = 0; i < wanted->n_cpuid && i < CPU_WORD_COUNT; i++)
		needed.words[i] = wanted->cpuid[i];
	cpu_features_read(&here);
	if (!cpu_features_missing(&needed, &here, names, sizeof(names)))
		return;
	fail(&found, ENOTSUP, "cpu-lesser", "processor", "--skip-check cpu if none of the programs uses that",
	     "that of the destination has not: %s", names);
	add_check(answering, "cpu", &found);
}

static void check_kernel(struct answering *answering)
{
	struct kernel_features features;
	struct failure found = {};

	kernel_features_probe(&features);
	for (size_t i = 0; i < FEATURE_COUNT; i++) {
		bool asked = feature_descriptions[i].required;

		for (size_t j = 0; j < answering->request->n_features && !asked; j++)
			asked = !strcmp(answering->request->features[j], feature_descriptions[i].name);
		if (!asked || features.has[i])
			continue;
		fail(&found, ENOTSUP, "kernel-feature", "kernel", "`criu check --all` there tells more",
		     "that of the destination has no %s: %s", feature_descriptions[i].name,
		     feature_descriptions[i].purpose);
		add_check(answering, "kernel", &found);
	}
}

static bool is_own_pid(const struct preflight_server *server, pid_t pid)
{
	for (size_t i = 0; i < server->options.own_pid_count; i++)
		if (server->options.own_pids[i] == pid)
			return true;
	return false;
}

static void name_pid(pid_t pid, char *names, size_t size)
{
	size_t used = strlen(names);
	struct proc_stat stat = {};
	_cleanup_fd_ int proc_dirfd = proc_open(pid);

	if (proc_dirfd >= 0)
		proc_read_stat(proc_dirfd, "stat", &stat);
	if (used < size)
		snprintf(names + used, size - used, "%s%d (%s)", used ? ", " : "", pid, stat.comm);
}

static void check_pids(struct answering *answering)
{
	const PreflightRequest *request = answering->request;
	struct failure found = {};
	char names[200] = "", path[32];
	size_t count = 0;

	if (request->new_pid_namespace)
		return;
	for (size_t i = 0; i < request->n_ids; i++) {
		pid_t pid = request->ids[i];

		/* Also numbers of threads: /proc has them, though no listing shows them. */
		snprintf(path, sizeof(path), "/proc/%d", pid);
		if (is_own_pid(answering->server, pid) || access(path, F_OK) < 0)
			continue;
		if (count++ < NAMED_PIDS)
			name_pid(pid, names, sizeof(names));
	}
	if (!count)
		return;
	fail(&found, EEXIST, "pid-taken", "process numbers",
	     "end these processes, or start `criu receive` with `unshare --pid --fork --mount-proc`",
	     "%zu of the tree's are in use on the destination: %s", count, names);
	add_check(answering, "pids", &found);
}

static void check_memory(struct answering *answering)
{
	uint64_t needed = answering->request->memory_bytes + answering->request->ghost_bytes;
	uint64_t free_bytes = proc_free_memory_bytes();
	struct failure found = {};

	if (needed <= free_bytes)
		return;
	fail(&found, ENOMEM, "memory-short", "memory", "free some there, or --skip-check memory",
	     "the tree has %llu MiB, the destination has %llu MiB left", (unsigned long long)(needed >> 20),
	     (unsigned long long)(free_bytes >> 20));
	add_check(answering, "memory", &found);
}

/* ---- addresses and ports ---- */

static bool comes_along(struct answering *answering, const MigrateListener *listener)
{
	struct failure ignored = {};
	struct moving_address moving;

	for (size_t i = 0; i < answering->request->n_moved_addresses; i++)
		if (address_parse(&ignored, answering->request->moved_addresses[i], &moving) == 0 &&
		    moving.family == (int)listener->family &&
		    !memcmp(moving.address, listener->address.data, listener->address.len))
			return true;
	return false;
}

static void socket_name(const MigrateListener *listener, char *name, size_t size)
{
	char text[INET6_ADDRSTRLEN] = "";

	inet_ntop((int)listener->family, listener->address.data, text, sizeof(text));
	snprintf(name, size, "%s socket %s port %u", listener->protocol == IPPROTO_UDP ? "UDP" : "TCP", text,
		 listener->port);
}

/* Tries what the restore will do. Returns 0 or -errno. */
static int try_bind(const MigrateListener *listener)
{
	struct sockaddr_in ipv4 = {.sin_family = AF_INET};
	struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6};
	bool four = listener->family == AF_INET;
	bool udp = listener->protocol == IPPROTO_UDP;
	_cleanup_fd_ int fd = socket((int)listener->family, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
	const int one = 1;

	if (fd < 0)
		return -errno;
	/* The number of the port matters only to those that wait at it. */
	uint16_t port = htons(listener->established ? 0 : (uint16_t)listener->port);
	ipv4.sin_port = ipv6.sin6_port = port;
	memcpy(four ? (void *)&ipv4.sin_addr : (void *)&ipv6.sin6_addr, listener->address.data, listener->address.len);
	if (!udp)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (!four)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, four ? (void *)&ipv4 : (void *)&ipv6, four ? sizeof(ipv4) : sizeof(ipv6)) < 0)
		return -errno;
	return udp || listener->established || listen(fd, 1) == 0 ? 0 : -errno;
}

static void check_sockets(struct answering *answering)
{
	struct failure found = {};
	char name[120];

	for (size_t i = 0; i < answering->request->n_listeners; i++) {
		const MigrateListener *listener = answering->request->listeners[i];

		if (listener->family == AF_UNIX || comes_along(answering, listener))
			continue;
		int r = try_bind(listener);
		if (r == 0 || (r != -EADDRNOTAVAIL && r != -EADDRINUSE))
			continue;
		socket_name(listener, name, sizeof(name));
		if (r == -EADDRINUSE) {
			fail(&found, EADDRINUSE, "port-taken", name, "end what uses it there",
			     "the port is in use on the destination");
			add_check(answering, "ports", &found);
			continue;
		}
		fail(&found, EADDRNOTAVAIL, "address-missing", name,
		     "move it with --address ADDRESS/PREFIX@INTERFACE, or add it there",
		     "the destination has no such address");
		add_check(answering, "addresses", &found);
	}
}

static void check_moved_addresses(struct answering *answering)
{
	const PreflightRequest *request = answering->request;

	for (size_t i = 0; i < request->n_moved_addresses; i++) {
		const char *text = request->moved_addresses[i];
		struct moving_address moving;
		struct failure found = {};
		bool interface, has = false;
		uint8_t prefix_length;

		int r = address_parse(&found, text, &moving);
		if (!r)
			r = address_look_up(&found, &moving, &interface, &has, &prefix_length);
		if (!r && !interface)
			r = fail(&found, ENODEV, "address-interface", text, "name an interface that both machines have",
				 "the destination has no interface %s", moving.interface);
		if (!r && has)
			r = fail(&found, EADDRINUSE, "address-taken", text, "remove it there first",
				 "the destination has this address already");
		if (r < 0)
			add_check(answering, "addresses", &found);
	}
}

/* ---- files ---- */

static bool has_build_id(const MigrateFile *file)
{
	uint32_t words[BUILD_ID_MAX_WORDS];
	_cleanup_fd_ int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return false;
	size_t count = build_id_read(fd, words);
	return count == file->n_build_id && !memcmp(words, file->build_id, count * sizeof(*words));
}

/* Returns why the file here will not do, or NULL. */
static const char *wrong_file(const MigrateFile *file, bool *ret_sendable)
{
	struct stat status;
	bool regular = S_ISREG(file->mode);

	*ret_sendable = regular;
	if (stat(file->path, &status) < 0)
		return errno == ENOENT ? "is missing on the destination" : "cannot be reached on the destination";
	if ((status.st_mode & S_IFMT) != (file->mode & S_IFMT)) {
		*ret_sendable = false;
		return "is something else on the destination";
	}
	if (file->has_rdev && (uint32_t)status.st_rdev != file->rdev)
		return "is another device on the destination";
	if (!regular)
		return NULL;
	uint64_t size = (uint64_t)status.st_size;
	/* A file that is shared by both machines may have grown since the source looked. */
	if (size != file->size && !((file->use & PREFLIGHT_FILE_WRITTEN) && size > file->size))
		return "has another size on the destination";
	if (file->n_build_id && !has_build_id(file))
		return "is another build of the program on the destination";
	return NULL;
}

/* A copy of what was asked for outlives the request. */
static void want_file(struct answering *answering, uint32_t index, const MigrateFile *file)
{
	struct preflight_server *server = answering->server;
	FileNeed *need = arena_message(&answering->arena, FileNeed, file_need);
	MigrateFile *copy = arena_memdup(&server->arena, file, sizeof(*file));

	if (index >= server->wanted_count) {
		server->wanted = xrealloc_array(server->wanted, index + 1, sizeof(*server->wanted));
		memset(server->wanted + server->wanted_count, 0,
		       (index + 1 - server->wanted_count) * sizeof(*server->wanted));
		server->wanted_count = index + 1;
	}
	copy->path = arena_strdup(&server->arena, file->path);
	copy->build_id = NULL;
	copy->n_build_id = 0;
	copy->target = NULL;
	server->wanted[index] = (struct wanted_file){.file = copy};
	need->file = index;
	file_need_fill(&answering->arena, file->path, need);
	ARRAY_GROW(answering->answer.files, answering->answer.n_files, answering->file_capacity);
	answering->answer.files[answering->answer.n_files++] = need;
}

static const char *file_hint(const MigrateFile *file, bool sendable)
{
	if (S_ISDIR(file->mode))
		return "make the directory there";
	return sendable ? "copy it, or let --send-files do it" : "make it the same there";
}

static void check_files(struct answering *answering)
{
	const PreflightRequest *request = answering->request;
	const struct preflight_server *server = answering->server;
	struct failure found = {};
	bool sendable;

	for (uint32_t i = 0; i < request->n_files; i++) {
		const MigrateFile *file = request->files[i];

		/* It has just come; what the tree has written since comes in the last round. */
		if (i < server->wanted_count && server->wanted[i].arrived &&
		    !strcmp(server->wanted[i].file->path, file->path))
			continue;
		const char *wrong = wrong_file(file, &sendable);
		if (!wrong)
			continue;
		if (request->send_files && sendable && !server->options.refuse_files) {
			want_file(answering, i, file);
			continue;
		}
		fail(&found, ENOENT, "file-differs", file->path, file_hint(file, sendable), "%s", wrong);
		add_check(answering, "files", &found);
	}
}

/* Whether the directory here is the root of a mount: then its parent lies on another file system or is itself. */
static bool is_mount_point(const char *path)
{
	_cleanup_free_ char *parent = xasprintf("%s/..", path);
	struct statx here, above;

	if (statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &here) < 0 ||
	    statx(AT_FDCWD, parent, 0, STATX_BASIC_STATS, &above) < 0)
		return false;
	return (here.stx_attributes & STATX_ATTR_MOUNT_ROOT) || here.stx_dev_minor != above.stx_dev_minor ||
	       here.stx_dev_major != above.stx_dev_major;
}

static bool has_wrong_file_below(const PreflightRequest *request, const char *mount)
{
	size_t length = strlen(mount);
	bool sendable;

	for (size_t i = 0; i < request->n_files; i++)
		if (!strncmp(request->files[i]->path, mount, length) && request->files[i]->path[length] == '/' &&
		    wrong_file(request->files[i], &sendable))
			return true;
	return false;
}

/* A mount that is missing matters if files are missing below it. */
static void check_mounts(struct answering *answering)
{
	const PreflightRequest *request = answering->request;
	struct failure found = {};

	for (size_t i = 0; i < request->n_mounts; i++) {
		const MigrateMount *mount = request->mounts[i];

		if (request->send_files || is_mount_point(mount->path) || !has_wrong_file_below(request, mount->path))
			continue;
		fail(&found, ENOENT, "mount-missing", mount->path, "mount it there",
		     "files of the tree lie on this mount (%s), which the destination has not", mount->type);
		add_check(answering, "mounts", &found);
	}
}

/* ---- answers ---- */

int preflight_server_answer(struct preflight_server *server, struct protocol *protocol,
			    const struct PreflightRequest *request, struct failure *failure)
{
	struct answering answering = {.server = server, .request = request};

	preflight_answer__init(&answering.answer);
	check_cpu(&answering);
	check_kernel(&answering);
	check_pids(&answering);
	check_mounts(&answering);
	check_files(&answering);
	check_moved_addresses(&answering);
	check_sockets(&answering);
	check_memory(&answering);
	int r = protocol_send(protocol, MESSAGE_PREFLIGHT_ANSWER, &answering.answer, failure);
	free(answering.answer.checks);
	free(answering.answer.files);
	arena_free(&answering.arena);
	return r;
}

int preflight_server_take_file(struct preflight_server *server, const struct FileData *data, struct failure *failure)
{
	if (data->file >= server->wanted_count || !server->wanted[data->file].file)
		return fail(failure, EPROTO, "protocol-message", "FILE_DATA", NULL,
			    "a file comes that was not asked for");
	struct wanted_file *wanted = &server->wanted[data->file];
	if (server->arrival && server->arrival_index != data->file)
		return fail(failure, EPROTO, "protocol-message", wanted->file->path, NULL,
			    "a file comes before another one is complete");
	int r = server->arrival ? 0 : file_arrival_new(wanted->file, failure, &server->arrival);
	if (r < 0)
		return r;
	server->arrival_index = data->file;
	r = file_arrival_take(server->arrival, data, failure);
	if (r < 0 || data->last)
		file_arrival_free(&server->arrival);
	wanted->arrived = wanted->arrived || (!r && data->last);
	return r;
}
