/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in an images directory. Images are hostile input: every file goes through the codec, and references
 * between files are looked up, never followed blindly.
 */
#include "cmd/show.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "cmd/command.h"
#include "image/image.h"
#include "kinds/mem/mem_kind.h"
#include "model/dump.h"

#include "inventory.pb-c.h"
#include "pagemap.pb-c.h"
#include "pstree.pb-c.h"

/* Images of others keep a zombie under this number, too. */
enum { TASK_STATE_ZOMBIE = 6 };

struct show {
	int dirfd;
	struct failure *failure;
	FileEntry **files; /* as files.img has them */
	size_t file_count, file_capacity;
};

/* Calls @take with each message of a file until it returns something negative; the message is its to free. */
static int read_each(struct show *show, enum image_kind kind, uint64_t id,
		     int (*take)(struct show *show, void *context, ProtobufCMessage *message), void *context)
{
	struct image *image;
	ProtobufCMessage *message;
	int r = image_open(show->dirfd, show->failure, kind, id, &image);

	if (r < 0)
		return r;
	while ((r = image_read(image, &message)) > 0) {
		r = take(show, context, message);
		if (r < 0)
			break;
	}
	image_close(&image);
	return r;
}

/* Fails also when the file is not there. */
static int read_one(struct show *show, enum image_kind kind, uint64_t id, ProtobufCMessage **ret_message)
{
	char name[64];
	int r = image_read_one(show->dirfd, show->failure, kind, id, ret_message);

	if (r < 0 && !failure_is_set(show->failure))
		return fail(show->failure, -r, "image-missing", image_name(kind, id, name, sizeof(name)),
			    "the images are not complete", "the image file is missing");
	return r;
}

static void free_message(void *pointer)
{
	ProtobufCMessage *message = *(ProtobufCMessage **)pointer;

	if (message)
		image_message_free(message);
}

#define _cleanup_message_ __attribute__((cleanup(free_message)))

static int take_file(struct show *show, void *context, ProtobufCMessage *message)
{
	ARRAY_GROW(show->files, show->file_count, show->file_capacity);
	show->files[show->file_count++] = (FileEntry *)message;
	return 0;
}

static int compare_files(const void *first, const void *second)
{
	uint32_t a = (*(FileEntry *const *)first)->id, b = (*(FileEntry *const *)second)->id;

	return a < b ? -1 : a > b;
}

static int read_files(struct show *show)
{
	int r = read_each(show, IMAGE_FILES, 0, take_file, NULL);

	if (show->file_count)
		qsort(show->files, show->file_count, sizeof(*show->files), compare_files);
	return r == -ENOENT && !failure_is_set(show->failure) ? 0 : r;
}

static const FileEntry *find_file(const struct show *show, uint32_t id)
{
	FileEntry key = FILE_ENTRY__INIT, *key_pointer = &key, **found;

	key.id = id;
	found = show->file_count
			? bsearch(&key_pointer, show->files, show->file_count, sizeof(*show->files), compare_files)
			: NULL;
	return found ? *found : NULL;
}

static int take_descriptor(struct show *show, void *context, ProtobufCMessage *message)
{
	const FdinfoEntry *entry = (FdinfoEntry *)message;
	const FileEntry *file = find_file(show, entry->id);
	json_t *json = file ? show_file(file) : json_pack("{s:I, s:s}", "id", (json_int_t)entry->id, "type", "missing");

	json_object_set_new(json, "fd", json_integer(entry->fd));
	json_array_append_new(context, json);
	image_message_free(message);
	return 0;
}

static const char *mapping_kind(const VmaEntry *vma)
{
	static const struct {
		unsigned status;
		const char *name;
	} kinds[] = {
		{VMA_STATUS_VDSO, "vdso"},          {VMA_STATUS_VVAR, "vvar"},
		{VMA_STATUS_VSYSCALL, "vsyscall"},  {VMA_STATUS_HEAP, "heap"},
		{VMA_STATUS_STACK, "stack"},        {VMA_STATUS_SYSVIPC, "sysv-shared"},
		{VMA_STATUS_AIO_RING, "aio-ring"},  {VMA_STATUS_MEMFD, "memfd"},
		{VMA_STATUS_FILE_PRIVATE, "file"},  {VMA_STATUS_FILE_SHARED, "file-shared"},
		{VMA_STATUS_ANON_SHARED, "shared"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (vma->status & kinds[i].status)
			return kinds[i].name;
	return "anonymous";
}

static json_t *show_mapping(const struct show *show, const VmaEntry *vma)
{
	char start[20], end[20], protection[5];

	snprintf(start, sizeof(start), "%" PRIx64, vma->start);
	snprintf(end, sizeof(end), "%" PRIx64, vma->end);
	snprintf(protection, sizeof(protection), "%c%c%c%c", vma->prot & PROT_READ ? 'r' : '-',
		 vma->prot & PROT_WRITE ? 'w' : '-', vma->prot & PROT_EXEC ? 'x' : '-',
		 vma->flags & MAP_SHARED ? 's' : 'p');
	json_t *json = json_pack("{s:s, s:s, s:s, s:s}", "start", start, "end", end, "protection", protection, "kind",
				 mapping_kind(vma));
	if (!(vma->status & (VMA_STATUS_FILE_PRIVATE | VMA_STATUS_FILE_SHARED)) || vma->shmid > UINT32_MAX)
		return json;
	const FileEntry *file = find_file(show, (uint32_t)vma->shmid);
	if (file && file->reg)
		json_object_set_new(json, "file", report_text(file->reg->name));
	return json;
}

struct page_counts {
	uint64_t stored, shared, in_parent, lazy;
	bool head_seen;
};

static void count_pages(const PagemapEntry *entry, struct page_counts *counts)
{
	uint64_t pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages;
	uint32_t flags = entry->flags;

	/* Old images have no flags: what is not in the parent images is present. */
	if (!entry->has_flags)
		flags = entry->has_in_parent && entry->in_parent ? PAGEMAP_IN_PARENT : PAGEMAP_PRESENT;
	if (flags & PAGEMAP_SHARED)
		counts->shared += pages;
	else if (flags & PAGEMAP_PRESENT)
		counts->stored += pages;
	if (flags & PAGEMAP_IN_PARENT)
		counts->in_parent += pages;
	if (flags & PAGEMAP_LAZY)
		counts->lazy += pages;
}

static int take_pages(struct show *show, void *context, ProtobufCMessage *message)
{
	struct page_counts *counts = context;

	/* The first message is the head. */
	if (counts->head_seen)
		count_pages((PagemapEntry *)message, counts);
	counts->head_seen = true;
	image_message_free(message);
	return 0;
}

static int show_memory(struct show *show, uint32_t pid, json_t *task)
{
	_cleanup_message_ ProtobufCMessage *message = NULL;
	struct page_counts counts = {};
	uint64_t mapped_bytes = 0;
	int r = read_one(show, IMAGE_MM, pid, &message);

	if (r < 0)
		return r;
	r = read_each(show, IMAGE_PAGEMAP, pid, take_pages, &counts);
	if (r < 0 && failure_is_set(show->failure))
		return r;
	const MmEntry *mm = (MmEntry *)message;
	json_t *mappings = json_array();
	for (size_t i = 0; i < mm->n_vmas; i++) {
		mapped_bytes += mm->vmas[i]->end - mm->vmas[i]->start;
		json_array_append_new(mappings, show_mapping(show, mm->vmas[i]));
	}
	json_int_t page_bytes = getpagesize();
	json_object_set_new(task, "memory",
			    json_pack("{s:I, s:I, s:I, s:I, s:I, s:o}", "mapped_bytes", (json_int_t)mapped_bytes,
				      "stored_bytes", (json_int_t)counts.stored * page_bytes, "shared_bytes",
				      (json_int_t)counts.shared * page_bytes, "in_parent_bytes",
				      (json_int_t)counts.in_parent * page_bytes, "lazy_bytes",
				      (json_int_t)counts.lazy * page_bytes, "mappings", mappings));
	return 0;
}

/* The table of descriptors has an id of its own, in the core image or, as older dumps have it, in a file of ids. */
static int find_files_id(struct show *show, uint32_t pid, const CoreEntry *core, uint32_t *ret_id)
{
	_cleanup_message_ ProtobufCMessage *message = NULL;

	if (core->ids) {
		*ret_id = core->ids->files_id;
		return 0;
	}
	int r = read_one(show, IMAGE_IDS, pid, &message);
	if (r < 0)
		return r;
	*ret_id = ((TaskKobjIdsEntry *)message)->files_id;
	return 0;
}

static int show_descriptors(struct show *show, uint32_t pid, const CoreEntry *core, json_t *task)
{
	json_t *files = json_array();
	uint32_t id;

	json_object_set_new(task, "files", files);
	int r = find_files_id(show, pid, core, &id);
	if (r < 0)
		return r;
	r = read_each(show, IMAGE_FDINFO, id, take_descriptor, files);
	return r < 0 && failure_is_set(show->failure) ? r : 0;
}

static const char *state_name(uint32_t state)
{
	switch (state) {
	case TASK_STATE_ALIVE:
		return "alive";
	case TASK_STATE_DEAD:
	case TASK_STATE_ZOMBIE:
		return "zombie";
	case TASK_STATE_STOPPED:
		return "stopped";
	default:
		return "?";
	}
}

static int fill_task(struct show *show, const PstreeEntry *entry, json_t *task)
{
	_cleanup_message_ ProtobufCMessage *message = NULL;
	int r = read_one(show, IMAGE_CORE, entry->pid, &message);

	if (r < 0)
		return r;
	const CoreEntry *core = (CoreEntry *)message;
	if (!core->tc)
		return fail(show->failure, EINVAL, "image-core", "core image", NULL, "no task in it");
	json_object_set_new(task, "name", report_text(core->tc->comm));
	json_object_set_new(task, "state", json_string(state_name(core->tc->task_state)));
	if (core->tc->task_state == TASK_STATE_DEAD || core->tc->task_state == TASK_STATE_ZOMBIE) {
		json_object_set_new(task, "wait_status", json_integer(core->tc->exit_code));
		return 0;
	}
	r = show_memory(show, entry->pid, task);
	return r < 0 ? r : show_descriptors(show, entry->pid, core, task);
}

static int take_task(struct show *show, void *context, ProtobufCMessage *message)
{
	const PstreeEntry *entry = (PstreeEntry *)message;
	json_t *threads = json_array();

	for (size_t i = 0; i < entry->n_threads; i++)
		json_array_append_new(threads, json_integer(entry->threads[i]));
	json_t *task = json_pack("{s:I, s:I, s:I, s:I, s:o}", "pid", (json_int_t)entry->pid, "parent",
				 (json_int_t)entry->ppid, "process_group", (json_int_t)entry->pgid, "session",
				 (json_int_t)entry->sid, "threads", threads);
	json_array_append_new(context, task);
	int r = fill_task(show, entry, task);
	if (r < 0)
		fail_in(show->failure, "task %u", entry->pid);
	image_message_free(message);
	return r;
}

static int read_inventory(struct show *show, json_t *document)
{
	_cleanup_message_ ProtobufCMessage *message = NULL;
	char format[16];
	int r = image_read_one(show->dirfd, show->failure, IMAGE_INVENTORY, 0, &message);

	if (r < 0 && !failure_is_set(show->failure))
		return fail(show->failure, -r, "images-none", "images directory", "a dump that has finished has one",
			    "holds no inventory.img");
	if (r < 0)
		return r;
	const InventoryEntry *inventory = (InventoryEntry *)message;
	snprintf(format, sizeof(format), "1.%u", inventory->img_version ? inventory->img_version - 1 : 0);
	json_object_set_new(document, "format", json_string(format));
	if (inventory->dump_criu_run_id)
		json_object_set_new(document, "run_id", report_text(inventory->dump_criu_run_id));
	return 0;
}

static int read_document(struct show *show, json_t *document)
{
	json_t *tasks = json_array();
	int r;

	json_object_set_new(document, "tasks", tasks);
	if ((r = read_inventory(show, document)) < 0 || (r = read_files(show)) < 0)
		return r;
	r = read_each(show, IMAGE_PSTREE, 0, take_task, tasks);
	if (r == -ENOENT && !failure_is_set(show->failure))
		return fail(show->failure, -r, "image-missing", "pstree.img", "the images are not complete",
			    "the image file is missing");
	if (r < 0)
		return r;
	/* Where the tree hangs: the root is the first entry. */
	json_object_set(document, "parent", json_object_get(json_array_get(tasks, 0), "parent"));
	return 0;
}

int show_read(int dirfd, struct failure *failure, json_t **ret_document)
{
	struct show show = {.dirfd = dirfd, .failure = failure};
	json_t *document = json_object();
	int r = read_document(&show, document);

	for (size_t i = 0; i < show.file_count; i++)
		image_message_free(&show.files[i]->base);
	free(show.files);
	if (r < 0) {
		json_decref(document);
		return r;
	}
	*ret_document = document;
	return 0;
}
