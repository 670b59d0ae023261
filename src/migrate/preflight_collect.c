/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree runs on while it is looked at: whatever vanishes between two looks is passed over, and whatever comes later
 * is found by the dump. The names in /proc come from the tree, which can make them as strange as it likes; they are
 * only compared and sent.
 */
#include "migrate/preflight_collect.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <uthash.h>

#include "base/fd.h"
#include "kernel/features.h"
#include "kernel/maps.h"
#include "kernel/proc.h"
#include "kinds/fd/build_id.h"
#include "migrate/preflight.h"
#include "migrate/preflight_cpu.h"

enum { MAX_TASKS = 1 << 16, MAX_FILES = 1 << 17, TCP_ESTABLISHED_STATE = 1, TCP_LISTEN_STATE = 10 };

struct seen_file {
	MigrateFile *file;
	UT_hash_handle hh;
};

struct collection {
	struct arena *arena;
	PreflightRequest *request;
	int *pids;
	size_t pid_count, pid_capacity;
	size_t id_capacity, file_capacity, listener_capacity, mount_capacity;
	struct seen_file *seen; /* by path, in the arena */
	uint64_t *socket_inodes;
	size_t socket_count, socket_capacity;
};

/* ---- files ---- */

static bool is_of_kernel(const char *path)
{
	static const char *const prefixes[] = {
		"/proc/", "/sys/", "/dev/pts/", "/memfd:", "/dev/zero", "/SYSV", "/[aio]"};

	for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++)
		if (!strncmp(path, prefixes[i], strlen(prefixes[i])))
			return true;
	return false;
}

static void add_build_id(struct collection *collection, MigrateFile *file, const char *link)
{
	uint32_t words[BUILD_ID_MAX_WORDS];
	_cleanup_fd_ int fd = open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return;
	file->n_build_id = build_id_read(fd, words);
	file->build_id = arena_memdup(collection->arena, words, sizeof(words));
}

/* A file with another name left: which one, the dump finds out. */
static bool is_deleted(const char *path)
{
	static const char mark[] = " (deleted)";
	size_t length = strlen(path);

	return length > sizeof(mark) && !strcmp(path + length - (sizeof(mark) - 1), mark);
}

/* @link: a name in /proc/PID that leads to the file. */
static void add_file(struct collection *collection, const char *link, const char *path, unsigned use)
{
	PreflightRequest *request = collection->request;
	struct stat status;

	if (path[0] != '/' || is_of_kernel(path) || stat(link, &status) < 0)
		return;
	if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode) && !S_ISCHR(status.st_mode) &&
	    !S_ISBLK(status.st_mode))
		return;
	if (!status.st_nlink) {
		request->ghost_bytes += (uint64_t)status.st_blocks * 512;
		return;
	}
	if (is_deleted(path))
		return;
	struct seen_file *seen;
	HASH_FIND_STR(collection->seen, path, seen);
	if (seen) {
		seen->file->use |= use;
		return;
	}
	if (request->n_files >= MAX_FILES)
		return;
	MigrateFile *file = arena_message(collection->arena, MigrateFile, migrate_file);
	file->path = arena_strdup(collection->arena, path);
	file->size = (uint64_t)status.st_size;
	file->mtime_ns = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
	file->mode = status.st_mode;
	file->uid = status.st_uid;
	file->gid = status.st_gid;
	file->use = use;
	file->has_rdev = S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode);
	file->rdev = (uint32_t)status.st_rdev;
	if (S_ISREG(status.st_mode) && (use & PREFLIGHT_FILE_MAPPED))
		add_build_id(collection, file, link);
	ARRAY_GROW(request->files, request->n_files, collection->file_capacity);
	request->files[request->n_files++] = file;
	seen = arena_alloc(collection->arena, sizeof(*seen));
	seen->file = file;
	HASH_ADD_KEYPTR(hh, collection->seen, file->path, strlen(file->path), seen);
}

static void add_link(struct collection *collection, pid_t pid, const char *name, unsigned use)
{
	_cleanup_free_ char *path = NULL;
	char link[64];

	snprintf(link, sizeof(link), "/proc/%d/%s", pid, name);
	if (read_link_at(AT_FDCWD, link, &path) == 0)
		add_file(collection, link, path, use);
}

static unsigned use_of_fd(int proc_dirfd, int number)
{
	_cleanup_free_ char *text = NULL;
	char name[40];

	snprintf(name, sizeof(name), "fdinfo/%d", number);
	if (read_text_at(proc_dirfd, name, &text, NULL) < 0)
		return PREFLIGHT_FILE_OPEN;
	const char *flags = proc_field(text, "flags");
	bool writes = flags && (strtoul(flags, NULL, 8) & O_ACCMODE) != O_RDONLY;
	return PREFLIGHT_FILE_OPEN | (writes ? PREFLIGHT_FILE_WRITTEN : 0);
}

static void add_fd(struct collection *collection, pid_t pid, int proc_dirfd, int number)
{
	_cleanup_free_ char *path = NULL;
	char link[64];
	unsigned long long inode;

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", pid, number);
	if (read_link_at(AT_FDCWD, link, &path) < 0)
		return;
	if (sscanf(path, "socket:[%llu]", &inode) == 1) {
		ARRAY_GROW(collection->socket_inodes, collection->socket_count, collection->socket_capacity);
		collection->socket_inodes[collection->socket_count++] = inode;
		return;
	}
	if (path[0] == '/')
		add_file(collection, link, path, use_of_fd(proc_dirfd, number));
}

static void add_mapped_files(struct collection *collection, pid_t pid, int proc_dirfd)
{
	struct mappings mappings;
	char link[80];

	if (mappings_read_short(proc_dirfd, &mappings) < 0)
		return;
	for (size_t i = 0; i < mappings.count; i++) {
		const struct mapping *mapping = &mappings.items[i];
		bool written = mapping->shared && (mapping->protection & 2);

		if (!mapping->inode || mapping->name[0] != '/' ||
		    (i && mappings.items[i - 1].inode == mapping->inode &&
		     !strcmp(mappings.items[i - 1].name, mapping->name) && !written))
			continue;
		snprintf(link, sizeof(link), "/proc/%d/map_files/%llx-%llx", pid, (unsigned long long)mapping->start,
			 (unsigned long long)mapping->end);
		add_file(collection, link, mapping->name,
			 PREFLIGHT_FILE_MAPPED | (written ? PREFLIGHT_FILE_WRITTEN : 0));
	}
	mappings_free(&mappings);
}

/* ---- memory ---- */

static uint64_t field_kib(const char *text, const char *name)
{
	const char *value = proc_field(text, name);

	return value ? strtoull(value, NULL, 10) : 0;
}

/* Shares of shared pages: what forks have in common counts once. */
static void add_memory(struct collection *collection, int proc_dirfd)
{
	_cleanup_free_ char *text = NULL;

	if (read_text_at(proc_dirfd, "smaps_rollup", &text, NULL) < 0)
		return;
	collection->request->memory_bytes +=
		(field_kib(text, "Pss_Anon") + field_kib(text, "Pss_Shmem") + field_kib(text, "SwapPss")) << 10;
}

/* ---- sockets ---- */

static int compare_inodes(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void add_listener(struct collection *collection, int family, int protocol, const char *hex, unsigned port,
			 bool established)
{
	PreflightRequest *request = collection->request;
	MigrateListener *listener = arena_message(collection->arena, MigrateListener, migrate_listener);
	uint32_t words[4] = {};
	size_t count = family == AF_INET ? 1 : 4;
	char word[9] = "";

	for (size_t i = 0; i < count; i++) {
		memcpy(word, hex + 8 * i, 8);
		/* The kernel prints each word as a number of this machine. */
		words[i] = (uint32_t)strtoul(word, NULL, 16);
	}
	listener->family = (uint32_t)family;
	listener->protocol = (uint32_t)protocol;
	listener->address.len = 4 * count;
	listener->address.data = arena_memdup(collection->arena, words, 4 * count);
	listener->port = port;
	listener->established = established;
	ARRAY_GROW(request->listeners, request->n_listeners, collection->listener_capacity);
	request->listeners[request->n_listeners++] = listener;
}

static void add_sockets_of(struct collection *collection, pid_t pid, const char *name, int family, int protocol)
{
	char path[64], local[64], line[512];

	snprintf(path, sizeof(path), "/proc/%d/net/%s", pid, name);
	FILE *file = fopen(path, "re");
	if (!file)
		return;
	while (fgets(line, sizeof(line), file)) {
		unsigned port, state;
		uint64_t inode;
		unsigned long long number;

		if (sscanf(line, " %*d: %32[0-9A-F]:%x %*[0-9A-F]:%*x %x %*x:%*x %*x:%*x %*x %*u %*u %llu", local,
			   &port, &state, &number) != 4 ||
		    strlen(local) != (family == AF_INET ? 8 : 32))
			continue;
		inode = number;
		if (!bsearch(&inode, collection->socket_inodes, collection->socket_count, sizeof(inode),
			     compare_inodes))
			continue;
		bool listens = protocol == IPPROTO_UDP || state == TCP_LISTEN_STATE;
		if (listens || state == TCP_ESTABLISHED_STATE)
			add_listener(collection, family, protocol, local, port, !listens);
	}
	fclose(file);
}

static void add_sockets(struct collection *collection, pid_t root)
{
	if (!collection->socket_count)
		return;
	qsort(collection->socket_inodes, collection->socket_count, sizeof(*collection->socket_inodes), compare_inodes);
	add_sockets_of(collection, root, "tcp", AF_INET, IPPROTO_TCP);
	add_sockets_of(collection, root, "tcp6", AF_INET6, IPPROTO_TCP);
	add_sockets_of(collection, root, "udp", AF_INET, IPPROTO_UDP);
	add_sockets_of(collection, root, "udp6", AF_INET6, IPPROTO_UDP);
}

/* ---- mounts ---- */

static bool has_file_below(const PreflightRequest *request, const char *mount)
{
	size_t length = strlen(mount);

	for (size_t i = 0; i < request->n_files; i++)
		if (!strncmp(request->files[i]->path, mount, length) &&
		    (request->files[i]->path[length] == '/' || !request->files[i]->path[length]))
			return true;
	return false;
}

/* Mounts other than the root that files of the tree lie on. */
static void add_mounts(struct collection *collection, pid_t root)
{
	PreflightRequest *request = collection->request;
	char path[64], line[8192], point[4096], type[128];

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", root);
	FILE *file = fopen(path, "re");
	if (!file)
		return;
	while (fgets(line, sizeof(line), file)) {
		const char *rest = strstr(line, " - ");

		if (!rest || sscanf(line, "%*d %*d %*s %*s %4095s", point) != 1 || sscanf(rest, " - %127s", type) != 1)
			continue;
		/* Names with blanks are written with octal numbers; no check is better than a wrong one. */
		if (!strcmp(point, "/") || strchr(point, '\\') || !has_file_below(request, point))
			continue;
		MigrateMount *mount = arena_message(collection->arena, MigrateMount, migrate_mount);
		mount->path = arena_strdup(collection->arena, point);
		mount->type = arena_strdup(collection->arena, type);
		ARRAY_GROW(request->mounts, request->n_mounts, collection->mount_capacity);
		request->mounts[request->n_mounts++] = mount;
	}
	fclose(file);
}

/* ---- the machine ---- */

static void add_machine(struct collection *collection)
{
	PreflightRequest *request = collection->request;
	struct cpu_features cpu;
	struct utsname name;

	cpu_features_read(&cpu);
	request->cpu = arena_message(collection->arena, MigrateCpu, migrate_cpu);
	request->cpu->xfeatures = cpu.xfeatures;
	request->cpu->xsave_bytes = cpu.xsave_bytes;
	request->cpu->vendor = arena_strdup(collection->arena, cpu.vendor);
	request->cpu->n_cpuid = CPU_WORD_COUNT;
	request->cpu->cpuid = arena_memdup(collection->arena, cpu.words, sizeof(cpu.words));
	uname(&name);
	request->kernel_release = arena_strdup(collection->arena, name.release);
	request->features = arena_alloc(collection->arena, FEATURE_COUNT * sizeof(char *));
	for (size_t i = 0; i < FEATURE_COUNT; i++)
		if (feature_descriptions[i].required)
			request->features[request->n_features++] = (char *)feature_descriptions[i].name;
}

/* ---- tasks ---- */

static void add_id(struct collection *collection, int id)
{
	ARRAY_GROW(collection->request->ids, collection->request->n_ids, collection->id_capacity);
	collection->request->ids[collection->request->n_ids++] = id;
}

static void add_task(struct collection *collection, pid_t pid)
{
	_cleanup_fd_ int proc_dirfd = proc_open(pid);
	_cleanup_free_ int *tids = NULL, *numbers = NULL;
	size_t tid_count, number_count;

	if (proc_dirfd < 0)
		return;
	if (proc_list_numbers(proc_dirfd, "task", &tids, &tid_count) == 0)
		for (size_t i = 0; i < tid_count; i++) {
			add_id(collection, tids[i]);
			proc_read_children(proc_dirfd, tids[i], &collection->pids, &collection->pid_count,
					   &collection->pid_capacity);
		}
	if (proc_list_numbers(proc_dirfd, "fd", &numbers, &number_count) == 0)
		for (size_t i = 0; i < number_count; i++)
			add_fd(collection, pid, proc_dirfd, numbers[i]);
	add_mapped_files(collection, pid, proc_dirfd);
	add_link(collection, pid, "exe", PREFLIGHT_FILE_MAPPED);
	add_link(collection, pid, "cwd", PREFLIGHT_FILE_DIRECTORY);
	add_link(collection, pid, "root", PREFLIGHT_FILE_DIRECTORY);
	add_memory(collection, proc_dirfd);
}

/* The arrays grow on the heap; the request gets them in the arena. */
static void *settle(struct arena *arena, void *items, size_t bytes)
{
	void *copy = bytes ? arena_memdup(arena, items, bytes) : NULL;

	free(items);
	return copy;
}

int preflight_collect(pid_t root, struct arena *arena, PreflightRequest *request, struct failure *failure)
{
	struct collection collection = {.arena = arena, .request = request};
	char object[32];

	snprintf(object, sizeof(object), "process %d", root);
	_cleanup_fd_ int proc_dirfd = proc_open(root);
	if (proc_dirfd < 0)
		return fail_errno(failure, proc_dirfd, "process", object, NULL, "cannot be looked at");
	add_machine(&collection);
	ARRAY_GROW(collection.pids, collection.pid_count, collection.pid_capacity);
	collection.pids[collection.pid_count++] = root;
	for (size_t i = 0; i < collection.pid_count && i < MAX_TASKS; i++)
		add_task(&collection, collection.pids[i]);
	add_sockets(&collection, root);
	add_mounts(&collection, root);
	HASH_CLEAR(hh, collection.seen);
	free(collection.pids);
	free(collection.socket_inodes);
	request->ids = settle(arena, request->ids, request->n_ids * sizeof(*request->ids));
	request->files = settle(arena, request->files, request->n_files * sizeof(*request->files));
	request->listeners = settle(arena, request->listeners, request->n_listeners * sizeof(*request->listeners));
	request->mounts = settle(arena, request->mounts, request->n_mounts * sizeof(*request->mounts));
	return 0;
}
